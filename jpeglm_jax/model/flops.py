"""FLOPs of a training step and peak rates of devices; training computes the MFU from them."""

from __future__ import annotations

import jax

from jpeglm_jax.hardware import chips
from jpeglm_jax.model.config import ModelConfig

FORMULA = (
    "6 x matrix parameters per token + "
    "6 x layers x heads x head_dim x sequence length (causal: half)"
)


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that are multiplied with every token: all but the embedding and the norms."""
    c = config
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    return c.layers * (attention + 3 * c.width * c.ffn) + c.width * c.vocab_size


def train_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """FLOPs of forward and backward pass per token; see FORMULA.

    Attention counts the causal half of a full sequence, whatever documents are in it. Recomputation
    by remat is not counted: these are model FLOPs, not hardware FLOPs.
    """
    c = config
    return 6 * matrix_parameters(c) + 6 * c.layers * c.heads * c.head_dim * seq_len


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 peak of one device; None for a device that is not in the table."""
    known = chips.chip(device.device_kind)
    return known.peak_flops if known else None
