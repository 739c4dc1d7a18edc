"""Distances between sets of features, and the statistics they need: NumPy only, on the host."""
