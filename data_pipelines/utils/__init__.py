"""What every other package needs and that needs none of them."""
