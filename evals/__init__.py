"""Offline evaluation jobs: they read what a run wrote and never touch the training loop."""
