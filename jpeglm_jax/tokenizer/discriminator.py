"""The discriminator of the adversarial loss: a verdict on each patch of an image.

As PatchGAN (Isola et al. 2017), with strided convolutions and group normalisation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_GROUPS = 8


class Discriminator(nnx.Module):
    """Pixels -> verdicts, positive for real ones.

    Args:
      channels: of the pixels.
      width: channels after the first convolution, a multiple of 8; twice as many after the second.
    """

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        def conv(inputs: int, outputs: int, strides: int) -> nnx.Conv:
            side = 4 if strides == 2 else 3
            return nnx.Conv(inputs, outputs, (side, side), strides=strides, rngs=rngs, dtype=dtype)

        self.first = conv(channels, width, 2)
        self.second = conv(width, 2 * width, 2)
        self.norm = nnx.GroupNorm(2 * width, num_groups=_GROUPS, rngs=rngs, dtype=dtype)
        self.head = conv(2 * width, 1, 1)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """float32 [B, H, W, C], -1 to 1 -> float32 [B, H / 4, W / 4, 1]."""
        x = nnx.leaky_relu(self.first(pixels), 0.2)
        x = nnx.leaky_relu(self.norm(self.second(x)), 0.2)
        return self.head(x).astype(jnp.float32)
