"""Tokens of whole code words, for any codec: letters, their characters, tokenizers, BPE merges."""
