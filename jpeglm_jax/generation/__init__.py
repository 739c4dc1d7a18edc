"""Prompts in, documents out: decoding, sampling, constraints."""
