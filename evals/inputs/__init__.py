"""Inputs of evaluations: real images, documents, generated files, clips."""
