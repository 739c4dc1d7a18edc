"""Networks that turn images and clips into features."""
