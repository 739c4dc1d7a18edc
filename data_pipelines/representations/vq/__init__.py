"""VQ: images as the codes of a learned tokenizer."""
