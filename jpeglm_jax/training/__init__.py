"""One step and what surrounds it: optimizer, data, checkpoints, metrics."""
