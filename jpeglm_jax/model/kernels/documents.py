"""Documents of a row as kernels for GPUs want them: by where each begins.

Documents lie one after another in a row, so a change of the segment id begins the next.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def starts(segments_BxS: jax.Array) -> jax.Array:
    """Where the document of each token begins, int32 [B, S]; padding counts as a document."""
    places_S = jnp.arange(segments_BxS.shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(_first(segments_BxS), places_S, 0), axis=1)


def offsets(segments_BxS: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lengths and offsets of the documents of each row, padding counting as one.

    Args:
      segments_BxS: int, the document of each token.
      most: how many documents a row can have.

    Returns:
      lengths, int32 [B, most], -1 where there is no further document; offsets, int32
      [B, most + 1], the row's length after the last document, then -1; and bool [B], whether the
      row has no more than `most`.
    """
    first_BxS = _first(segments_BxS)
    length = segments_BxS.shape[1]

    def row(first_S: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = jnp.nonzero(first_S, size=most, fill_value=length)[0].astype(jnp.int32)
        ends = jnp.append(at[1:], length)
        lengths = jnp.where(at < length, ends - at, -1)
        count = jnp.sum(at < length)
        places = jnp.append(at, length)
        return lengths, jnp.where(jnp.arange(most + 1) <= count, places, -1)

    return *jax.vmap(row)(first_BxS), jnp.sum(first_BxS, axis=1) <= most


def _first(segments_BxS: jax.Array) -> jax.Array:
    """bool [B, S]: does a document begin here?"""
    changes = segments_BxS[:, 1:] != segments_BxS[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
