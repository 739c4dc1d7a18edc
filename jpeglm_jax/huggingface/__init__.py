"""Llama checkpoints as `transformers` keeps them: files, names, configuration, tokenizer, card.

`jpeglm_jax.convert` puts these parts together. Nothing here needs `transformers` or torch.
"""


class ConversionError(ValueError):
    """A checkpoint that is damaged, or that the other side cannot hold."""
