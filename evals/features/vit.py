"""What the transformers `dinov2` and `clip` share: products, layer norm, attention, in float32.

Weights are pairs (matrix or scale, bias). The default precision of accelerators multiplies in
fewer bits, which changes distances, so every product is at the highest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

HEAD = 64  # dimensions of a head, in all published sizes of both networks
PRECISION = jax.lax.Precision.HIGHEST


def linear(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x @ matrix + bias: [..., inputs] -> [..., outputs]."""
    return jnp.matmul(x, weights[0], precision=PRECISION) + weights[1]


def norm(x: jax.Array, weights: tuple[jax.Array, jax.Array], epsilon: float) -> jax.Array:
    """Layer norm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * weights[0] + weights[1]


def attention(layer: Mapping[str, Any], x: jax.Array, *, causal: bool = False) -> jax.Array:
    """Self-attention with the layer's "query", "key", "value", "output": [B, T, width] -> same."""
    query, key, value = (
        linear(x, layer[name]).reshape(*x.shape[:2], -1, HEAD) for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=PRECISION) / HEAD**0.5
    if causal:
        allowed = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(allowed, scores, -jnp.inf)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value, precision=PRECISION)
    return linear(mixed.reshape(x.shape), layer["output"])


def patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Embeddings of the patches of images: [B, height, width, 3] -> [B, patches, outputs].

    The kernel is [patch, patch, 3, outputs].
    """
    x = jax.lax.conv_general_dilated(
        x,
        kernel,
        kernel.shape[:2],
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=PRECISION,
    )
    return x.reshape(len(x), -1, x.shape[-1])
