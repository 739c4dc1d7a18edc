"""The Pallas kernel for GPUs that comes with JAX, on Triton; it masks by segment ids.

`jax.experimental.pallas.ops.gpu.attention`. It knows one head of keys a head of queries, so
grouped keys are repeated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as pallas

BLOCK = 64  # rows at a time: what fits an H100's shared memory at a head size of 128


def attention(
    q_BxSxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    segments_BxS: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """See `jpeglm_jax.model.attention.attention`; for what one device holds.

    Raises:
      ValueError: rows that BLOCK does not divide.
    """
    length, heads, head_dim = q_BxSxHxK.shape[1:]
    block = min(BLOCK, length)
    if length % block or block & (block - 1):
        raise ValueError(
            f"the Triton kernel needs rows that are a multiple of {BLOCK} places (or a power of "
            f"two below it), found {length}; change seq_len, or set model.attention=chunked"
        )
    repeats = heads // k_BxSxGxK.shape[2]
    k, v = (jnp.repeat(x, repeats, axis=2) for x in (k_BxSxGxK, v_BxSxGxK))
    sizes = pallas.BlockSizes(block, block, block, block, block, block)
    return pallas.mha(
        q_BxSxHxK, k, v, segments_BxS, head_dim**-0.5, True, sizes, interpret=interpret
    )
