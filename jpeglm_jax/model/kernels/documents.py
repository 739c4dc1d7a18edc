"""Documents of a row as kernels for GPUs want them: by where each begins.

Documents lie one after another in a row, so a change of the segment id begins the next. Padding
counts as a document: what its positions compute is never read, but it has to be finite.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


def starts(segments_BxS: jax.Array) -> jax.Array:
    """Where the document of each token begins, int32 [B, S]; padding counts as a document."""
    positions_S = jnp.arange(segments_BxS.shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(_first(segments_BxS), positions_S, 0), axis=1)


@dataclasses.dataclass(frozen=True)
class Packed:
    """The documents of all rows of a device as one list of sequences, at most N = B * max.

    Attributes:
      lengths_N: int32, of each document in the order of the rows; 0 past the last.
      starts_N: int32, where each begins, counted in tokens from the first of the first row;
        B * S past the last.
      number_BxS: int32, which of the N the document of each token is.
      fits: bool scalar; whether the rows hold no more than N documents.
    """

    lengths_N: jax.Array
    starts_N: jax.Array
    number_BxS: jax.Array
    fits: jax.Array


def pack(segments_BxS: jax.Array, max_documents: int) -> Packed:
    """Lists the documents of rows, [B, S], of up to `max_documents` each on average."""
    tokens = segments_BxS.size
    first_T = _first(segments_BxS).reshape(-1)
    number_T = jnp.cumsum(first_T.astype(jnp.int32)) - 1
    count = segments_BxS.shape[0] * max_documents
    starts_N = jnp.nonzero(first_T, size=count, fill_value=tokens)[0].astype(jnp.int32)
    ends_N = jnp.append(starts_N[1:], tokens)
    return Packed(
        lengths_N=ends_N - starts_N,
        starts_N=starts_N,
        number_BxS=jnp.minimum(number_T, count - 1).reshape(segments_BxS.shape),
        fits=number_T[-1] < count,
    )


def _first(segments_BxS: jax.Array) -> jax.Array:
    """bool [B, S]: does a document begin here?"""
    changes = segments_BxS[:, 1:] != segments_BxS[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
