"""What `evals.compare` is made of: its plan, its stages, and its result."""
