"""JPEG files as tokens."""
