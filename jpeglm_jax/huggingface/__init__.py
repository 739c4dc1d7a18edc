"""Hugging Face Llama checkpoints: weights, configuration, tokenizer and model card.

The command `jpeglm_jax.convert` combines these modules. They need neither `transformers` nor torch.
"""


class ConversionError(ValueError):
    """A checkpoint that is damaged, or that the other format cannot represent."""
