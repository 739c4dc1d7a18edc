"""Which documents lie in which row, from lengths alone."""
