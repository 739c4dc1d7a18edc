"""A model's bits, and its use as a compressor."""
