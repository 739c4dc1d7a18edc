"""Training of learned image tokenizers: their losses, step, evaluation and cost."""
