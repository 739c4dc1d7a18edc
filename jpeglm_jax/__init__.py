"""The model and everything that runs it: train, generate, compile, convert."""
