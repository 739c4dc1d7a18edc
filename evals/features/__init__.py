"""Feature extractors for images and clips, their weights, and the extraction of features."""
