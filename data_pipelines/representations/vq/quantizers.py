"""Quantisers of a tokenizer: continuous latents -> codes, and how they learn.

vq: a codebook of unit-length codes (Yu et al. 2022, "Vector-quantized image modeling with improved
  VQGAN"), which follows the moving average of the latents assigned to each code (van den Oord et
  al. 2017, appendix A.1). Codes that are hardly used are restarted next to the most used ones.
fsq: each number of a latent rounded to a few levels (Mentzer et al. 2023, "Finite scalar
  quantization: VQ-VAE made simple"). There is nothing to learn.

Pure functions of arrays; the tokenizer's network and its training call them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GRADIENTS = ("straight_through", "rotation")
_EPSILON = 1e-6
_FSQ_MARGIN = 1e-3  # Mentzer et al.: the outer levels are reached
_SPLIT_NOISE = 0.05  # length of the step from a code to the one that is restarted next to it


class Codebook(NamedTuple):
    """What "vq" learns. The code k is `sums[k]` scaled to unit length.

    Attributes:
      counts: float32 [K], moving average of how often each code is used, where 1 is its share of
        even use. They begin at one.
      sums: float32 [K, D], moving average of the sums of the latents of each code, in that unit.
    """

    counts: jax.Array
    sums: jax.Array


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., D] scaled to length 1."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPSILON**2)


def new_codebook(key: jax.Array, codes: int, dim: int) -> Codebook:
    """Random codes on the unit sphere, each with a count of one."""
    return Codebook(jnp.ones(codes), unit(jax.random.normal(key, (codes, dim))))


def nearest(codebook_KxD: jax.Array, latents: jax.Array) -> jax.Array:
    """The code of each latent, int32 [...]; both of unit length, so that it is the largest cosine.

    Args:
      codebook_KxD: float32 [K, D], unit length.
      latents: float32 [..., D], unit length.
    """
    return jnp.argmax(latents @ codebook_KxD.T, axis=-1).astype(jnp.int32)


def straight_through(latents: jax.Array, quantized: jax.Array) -> jax.Array:
    """The quantised values, with the gradient of the latents."""
    return latents + jax.lax.stop_gradient(quantized - latents)


def rotation(latents: jax.Array, quantized: jax.Array) -> jax.Array:
    """The quantised values, as a rotation and a scaling of the latents, held constant in gradients.

    Fifty et al. 2024, "Restructuring vector quantization with the rotation trick": a gradient keeps
    its angle to the code when it passes to the latent, where straight-through copies it.

    Args:
      latents: float32 [..., D].
      quantized: float32 [..., D], no gradient passes to them.
    """
    held = jax.lax.stop_gradient
    norm_e, norm_q = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (latents, quantized))
    e, q = held(latents / (norm_e + _EPSILON)), held(quantized / (norm_q + _EPSILON))
    scale = held(norm_q / (norm_e + _EPSILON))
    r = held(unit(e + q))

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=-1, keepdims=True)

    # R = I - 2 r r^T + 2 q e^T, a rotation that takes e to q.
    return scale * (latents - 2 * dot(latents, r) * r + 2 * dot(latents, e) * q)


PASS_GRADIENT = {"straight_through": straight_through, "rotation": rotation}


def update_codebook(
    codebook: Codebook,
    latents_NxD: jax.Array,
    codes_N: jax.Array,
    weights_N: jax.Array,
    key: jax.Array,
    *,
    decay: float | jax.Array,
    restart_below: float,
) -> tuple[Codebook, jax.Array]:
    """The codebook after a batch.

    A code whose count is below `restart_below` is put next to a more used one, whose count they
    share: the least used next to the most used, the second least next to the second most, and so
    on. A code is only split if both parts stay at or above `restart_below`.

    Args:
      codebook: before.
      latents_NxD: float32 [N, D], unit length.
      codes_N: int32 [N], code of each latent.
      weights_N: float32 [N], 0 for latents that do not count.
      key: of the random direction of restarted codes.
      decay: of the moving averages.
      restart_below: 0 for no restarts.

    Returns:
      The codebook, and the number of restarted codes, int32.
    """
    num = codebook.counts.size
    assigned_NxK = jax.nn.one_hot(codes_N, num) * weights_N[:, None]
    share = num / jnp.maximum(jnp.sum(weights_N), 1.0)  # even use is a count of one
    counts = share * jnp.sum(assigned_NxK, axis=0)
    sums = share * (assigned_NxK.T @ latents_NxD)
    counts = decay * codebook.counts + (1 - decay) * counts
    sums = decay * codebook.sums + (1 - decay) * sums
    if not restart_below:
        return Codebook(counts, sums), jnp.zeros([], jnp.int32)

    order = jnp.argsort(counts)
    least, most = order[: num // 2], order[::-1][: num // 2]
    half = counts[most] / 2
    restart = (counts[least] < restart_below) & (half >= restart_below)
    direction = unit(jax.random.normal(key, (num // 2, sums.shape[1])))
    new = half[:, None] * unit(unit(sums[most]) + _SPLIT_NOISE * direction)

    def replaced(x: jax.Array, where: jax.Array, by: jax.Array) -> jax.Array:
        chosen = restart.reshape(-1, *[1] * (x.ndim - 1))
        return x.at[where].set(jnp.where(chosen, by, x[where]))

    counts = replaced(replaced(counts, least, half), most, half)
    sums = replaced(replaced(sums, least, new), most, sums[most] / 2)
    return Codebook(counts, sums), jnp.sum(restart).astype(jnp.int32)


def fsq_bound(latents: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Latents [..., D] -> values that round to `levels[d]` different integers, 0 to 0.

    An odd number of levels is symmetric, -1, 0, 1; an even one has one more below, -2, -1, 0, 1.
    """
    size = np.asarray(levels)
    half = (size - 1) * (1 + _FSQ_MARGIN) / 2
    offset = np.where(size % 2 == 0, 0.5, 0.0)
    shift = np.arctanh(offset / half)
    return jnp.tanh(latents + shift) * half - offset


def fsq_round(latents: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Latents [..., D] -> quantised values, about -1 to 1, with the gradient of the bound."""
    bound = fsq_bound(latents, levels)
    return straight_through(bound, jnp.round(bound)) / _fsq_half(levels)


def fsq_codes(quantized: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Quantised values [..., D], see `fsq_round` -> codes, int32 [...]."""
    digits = jnp.round(quantized * _fsq_half(levels)).astype(jnp.int32) + _fsq_half(levels)
    return jnp.sum(digits * _fsq_basis(levels), axis=-1).astype(jnp.int32)


def fsq_values(codes: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Codes [...] -> quantised values, float32 [..., D]; the inverse of `fsq_codes`."""
    digits = codes[..., None] // _fsq_basis(levels) % np.asarray(levels, np.int32)
    return (digits - _fsq_half(levels)) / _fsq_half(levels).astype(np.float32)


def _fsq_half(levels: Sequence[int]) -> np.ndarray:
    return np.asarray(levels, np.int32) // 2


def _fsq_basis(levels: Sequence[int]) -> Any:
    return np.cumprod([1, *levels[:-1]]).astype(np.int32)
