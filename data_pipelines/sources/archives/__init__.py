"""Tar archives: their members, the labels of their samples, and the source."""
