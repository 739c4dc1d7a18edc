"""Sampling documents from a trained model: engine, constraint, prompts and jobs."""
