"""Losses between images and their reconstructions, one number per image: float32 [B].

Pixels are float32 [B, H, W, C], -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Pixels -> the feature maps that a perceptual loss compares, each [B, H', W', C'].
Features = Callable[[jax.Array], Sequence[jax.Array]]
_EPSILON = 1e-6


def l1(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean absolute difference."""
    return jnp.mean(jnp.abs(a - b), axis=(1, 2, 3))


def l2(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean squared difference."""
    return jnp.mean(jnp.square(a - b), axis=(1, 2, 3))


PIXELS = {"l1": l1, "l2": l2}


def perceptual(features: Features, a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean squared distance of features scaled to unit length, averaged over the maps.

    As LPIPS (Zhang et al. 2018) without its learned weights.
    """
    distances = [
        jnp.mean(jnp.sum(jnp.square(_unit(x) - _unit(y)), axis=-1), axis=(1, 2))
        for x, y in zip(features(a), features(b), strict=True)
    ]
    return sum(distances[1:], distances[0]) / len(distances)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's loss; its outputs are [B, h, w, 1]."""
    each = jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)
    return jnp.mean(each, axis=(1, 2, 3)) / 2


def deceive(fake: jax.Array) -> jax.Array:
    """The tokenizer's adversarial loss, from the discriminator's output for reconstructions."""
    return -jnp.mean(fake, axis=(1, 2, 3))


def mean(values_B: jax.Array, weights_B: jax.Array) -> jax.Array:
    """The mean over images, a scalar; images of weight 0 do not count."""
    return jnp.sum(values_B * weights_B) / jnp.maximum(jnp.sum(weights_B), 1.0)
