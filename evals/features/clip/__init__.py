"""CLIP: the network of CMMD and of the CLIP score, and its tokenizer."""
