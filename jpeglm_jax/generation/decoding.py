"""Autoregressive decoding with a key-value cache: `prefill` of prompts and one `step` per token.

The engine and the model as a compressor (evals) call these functions. Training scans over stacked
layers. A decoding step is so short that slicing a layer out of the stack would cost as much as
using it. So the weights of each layer are arrays of their own here, and each layer has a cache of
its own, updated in place.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jpeglm_jax.model.llama import LayerCache, Llama
from jpeglm_jax.model.ops import rope_tables
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding

# Keys and values of all layers.
Cache = tuple[LayerCache, ...]

# Weights of at most this many bytes are not split along the fsdp axis as in training: gathering
# them again for every token would take longer than the token.
GATHERED_BYTES = 2 << 30


def weights(spec: ModelSpec, params: Any) -> dict[str, Any]:
    """The parameters as `step` and `prefill` take them: {"outer": ..., "layers": [...]}.

    Matrices are in the compute type, scales of norms in float32.
    """

    def cast(weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        return weight if "norm" in axes else weight.astype(spec.config.dtype)

    params = jax.tree.map(cast, params, spec.axes)
    outer = {name: part for name, part in params.items() if name != "blocks"}
    layers = [
        jax.tree.map(lambda stacked, number=number: stacked[number], params["blocks"])
        for number in range(spec.config.layers)
    ]
    return {"outer": outer, "layers": layers}


def weight_shardings(spec: ModelSpec, mesh: Mesh) -> dict[str, Any]:
    """Shardings of `weights`: those of training, but not split over fsdp if they are small."""
    shapes = spec.abstract_params
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    size = count * jnp.dtype(spec.config.dtype).itemsize // mesh.shape["tensor"]
    gathered = size <= GATHERED_BYTES

    def sharding_of(axes: tuple[str, ...]) -> NamedSharding:
        spec = sharding.spec(*axes)
        if gathered:
            spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
        return NamedSharding(mesh, spec)

    def is_axes(x: Any) -> bool:
        return isinstance(x, tuple)

    outer = {name: part for name, part in spec.axes.items() if name != "blocks"}
    layer = jax.tree.map(lambda axes: axes[1:], spec.axes["blocks"], is_leaf=is_axes)
    tree = {"outer": outer, "layers": [layer] * spec.config.layers}
    return jax.tree.map(sharding_of, tree, is_leaf=is_axes)


def empty_cache(spec: ModelSpec, batch: int, seq_len: int) -> Cache:
    """A cache for `batch` sequences of at most `seq_len` tokens, in the compute type."""
    c = spec.config

    def zeros() -> jax.Array:
        return jnp.zeros((batch, c.kv_heads, seq_len, c.head_dim), c.dtype)

    return tuple((zeros(), zeros()) for _ in range(c.layers))


def cache_shardings(spec: ModelSpec, mesh: Mesh) -> Any:
    """Shardings of a cache: rows over the axes of the batch, heads over tensor."""
    where = sharding.named(mesh, "batch", "kv_heads", None, None)
    return ((where, where),) * spec.config.layers


def step(
    spec: ModelSpec, weights: Any, tokens_B: jax.Array, positions_B: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Logits of the next token, given one more token of each sequence.

    Args:
      spec: which model.
      weights: see `weights`.
      tokens_B: int32 [batch].
      positions_B: int32 [batch], the position of each token in its sequence, 0 for the first; the
        cache is never read from there on.
      cache: keys and values of the positions before.

    Returns:
      float32 [batch, vocabulary], and the cache with these positions filled in.
    """
    model, graph = _modules(spec, weights)
    tables = rope_tables(positions_B[:, None], spec.config.head_dim, spec.config.rope_theta)
    x_Bx1xD = model.embed_tokens(tokens_B[:, None])
    filled = []
    for layer, kv in zip(weights["layers"], cache, strict=True):
        x_Bx1xD, kv = nnx.merge(graph, layer).step(x_Bx1xD, positions_B, kv, tables)
        filled.append(kv)
    return model.logits(x_Bx1xD)[:, 0], tuple(filled)


def prefill(
    spec: ModelSpec, weights: Any, tokens_RxP: jax.Array, rows_R: jax.Array, cache: Cache
) -> Cache:
    """Reads the first tokens of some sequences at once.

    Args:
      spec: which model.
      weights: see `weights`.
      tokens_RxP: int32, the first tokens; shorter sequences are padded with any token: the steps
        that follow overwrite its cache entry before they read it.
      rows_R: int32, the row of the cache of each sequence; rows out of range are dropped.
      cache: keys and values.

    Returns:
      The cache with positions 0 to P - 1 of these rows filled in.
    """
    model, graph = _modules(spec, weights)
    rows, length = tokens_RxP.shape
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    tables = rope_tables(positions, spec.config.head_dim, spec.config.rope_theta)
    segments = jnp.ones((rows, length), jnp.int32)
    x_RxPxD = model.embed_tokens(tokens_RxP)
    filled = []
    for layer, old in zip(weights["layers"], cache, strict=True):
        x_RxPxD, new = nnx.merge(graph, layer)(x_RxPxD, segments, tables)
        keys, values = (
            c.at[rows_R, :, :length].set(part.astype(c.dtype), mode="drop")
            for c, part in zip(old, new, strict=True)
        )
        filled.append((keys, values))
    return tuple(filled)


def _modules(spec: ModelSpec, weights: Any) -> tuple[Llama, Any]:
    """The model without its layers, and the graph of a layer."""
    # Any layer's weights complete the tree; embedding, norm and head do not use them.
    model = nnx.merge(spec.graph, weights["outer"] | {"blocks": weights["layers"][0]})
    return model, nnx.split(model.blocks)[0]
