"""Small sources that need no download: handwritten digits, and moving ones."""
