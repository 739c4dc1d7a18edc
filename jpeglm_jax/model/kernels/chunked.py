"""Plain XLA in bounded memory: a chunk of queries at a time, for rows that no kernel can take."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

CHUNK = 512


def attention(
    q_BxSxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    segments_BxS: jax.Array,
    plain: Callable[..., jax.Array],
) -> jax.Array:
    """See `jpeglm_jax.model.attention.attention`: scores of CHUNK queries exist at a time.

    The backward pass computes each chunk's scores again (Rabe and Staats 2021).

    Args:
      plain: (q, k, v, mask) -> out, for one chunk of queries.
    """
    batch, length, heads, head_dim = q_BxSxHxK.shape
    chunk = next(n for n in range(min(CHUNK, length), 0, -1) if length % n == 0)
    positions_S = jnp.arange(length)

    @jax.checkpoint
    def one(start: jax.Array) -> jax.Array:
        q = jax.lax.dynamic_slice_in_dim(q_BxSxHxK, start, chunk, axis=1)
        segments = jax.lax.dynamic_slice_in_dim(segments_BxS, start, chunk, axis=1)
        causal = start + jnp.arange(chunk)[:, None] >= positions_S
        same = segments[:, :, None] == segments_BxS[:, None, :]
        return plain(q, k_BxSxGxK, v_BxSxGxK, same & causal)

    out = jax.lax.map(one, jnp.arange(0, length, chunk))
    return out.swapaxes(0, 1).reshape(batch, length, heads, head_dim)
