"""Identity of weights, and a check that they are finite.

Loading a checkpoint checks its weights here. Generation jobs record the digest, so that the samples
of one model are never taken for those of another. Both read the weights once, on their devices.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MIXES = (0x9E3779B9, 0x7F4A7C15)


class NotFiniteError(ValueError):
    """Weights that are NaN or infinite."""


def weights_digest(params: Any) -> str:
    """16 hex digits over the names, shapes, types and all values of weights.

    Equal weights have equal digests on any mesh and any number of devices: the values are hashed
    each with its index, and the hashes summed as integers.

    Args:
      params: a tree of arrays of 16 or 32 bits.
    """
    sums = jax.device_get(jax.jit(lambda tree: jax.tree.map(_hash, tree))(params))
    facts = [
        (_name(path), list(leaf.shape), str(leaf.dtype), np.asarray(found).tolist())
        for (path, leaf), found in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(sums), strict=True
        )
    ]
    return hashlib.sha256(json.dumps(sorted(facts)).encode()).hexdigest()[:16]


def require_finite(params: Any, holder: str) -> None:
    """Raises NotFiniteError, naming the parameters, if weights are NaN or infinite.

    Args:
      params: a tree of arrays.
      holder: where the weights are from, for the message.
    """
    counts = jax.device_get(jax.jit(lambda tree: jax.tree.map(_not_finite, tree))(params))
    wrong = {
        _name(path): int(count) for path, count in jax.tree_util.tree_leaves_with_path(counts)
    }
    named = [f"{name} ({count:,} values)" for name, count in wrong.items() if count]
    if named:
        raise NotFiniteError(
            f"weights of {holder} are NaN or infinite: {', '.join(named)}; expected finite "
            "weights: use an earlier checkpoint, or fetch the file again"
        )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _not_finite(leaf: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(leaf))


def _hash(leaf: jax.Array) -> jax.Array:
    """Two hashes of an array, uint32 [2]."""
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    index, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        step = jnp.uint32(stride % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * step
        stride *= leaf.shape[axis]
    return jnp.stack(
        [jnp.sum(_mix(bits ^ _mix(index + jnp.uint32(salt))), dtype=jnp.uint32) for salt in _MIXES]
    )


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3, a permutation of 32 bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
