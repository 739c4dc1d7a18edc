"""The train step compiled ahead of time: its memory, an estimate of its time, the best options."""
