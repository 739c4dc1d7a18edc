"""Operations of a training step, and the peak rates they are held against."""

from __future__ import annotations

import jax

from jpeglm_jax.hardware import chips
from jpeglm_jax.model.config import ModelConfig

FORMULA = (
    "6 x matrix parameters a token + 6 x layers x heads x head_dim x sequence length (causal: half)"
)


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that are multiplied with every token: all but the embedding and the norms."""
    c = config
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    return c.layers * (attention + 3 * c.width * c.ffn) + c.width * c.vocab_size


def train_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Operations of forward and backward pass for one place of a row; see FORMULA.

    Attention counts the causal half of a full row, whatever documents are in it. What remat
    computes again is not counted: this is the model's work, not the hardware's.
    """
    c = config
    return 6 * matrix_parameters(c) + 6 * c.layers * c.heads * c.head_dim * seq_len


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 peak of one device; None for a device that is not in the table."""
    known = chips.chip(device.device_kind)
    return known.peak_flops if known else None
