"""Tokens of whole code words of H.264: the alphabet, streams <-> letters, allowed next tokens."""
