"""Llama in Flax NNX: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

`ModelSpec` builds it; training calls it on whole sequences, decoding one token at a time (`step`).
The model does not depend on the meaning of the tokens.

Layers are stacked: the parameters of a `Block` have a leading axis of layers, and the forward pass
scans over it, so that a deep model compiles as fast as a shallow one. Weights are kept in float32
and cast to the compute type where used.

Dimensions in names: B batch, S length, D width, H heads, G key-value heads, K head size,
F feed-forward width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jpeglm_jax.model.attention import attention, cached_attention
from jpeglm_jax.model.config import GATE, OUTPUT, QKV, REMAT_POLICIES, UP, ModelConfig
from jpeglm_jax.model.ops import (
    down_projection,
    embedding_lookup,
    normal,
    rope_tables,
    rotate,
    swiglu,
    up_projection,
)
from jpeglm_jax.parallel.sharding import constrain

# Keys and values of one layer, [B, G, T, K] each: T is the max sequence length.
LayerCache = tuple[jax.Array, jax.Array]


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], stddev: float
) -> nnx.Param:
    """A normally distributed float32 parameter with the logical axis of each dimension."""
    return nnx.Param(stddev * normal(rngs.params(), shape), axes=axes)


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), computed in float32."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], eps: float):
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32), axes=axes)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(variance + self.eps) * self.scale[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Attention of all layers; parameters [L, ...]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = config
        self.config = c
        std = c.width**-0.5
        out_std = (c.heads * c.head_dim) ** -0.5 * (2 * c.layers) ** -0.5
        kv_axes = ("layers", "embed", "kv_heads", "head_dim")
        self.q = weight(
            rngs,
            (c.layers, c.width, c.heads, c.head_dim),
            ("layers", "embed", "heads", "head_dim"),
            std,
        )
        self.k = weight(rngs, (c.layers, c.width, c.kv_heads, c.head_dim), kv_axes, std)
        self.v = weight(rngs, (c.layers, c.width, c.kv_heads, c.head_dim), kv_axes, std)
        self.o = weight(
            rngs,
            (c.layers, c.heads, c.head_dim, c.width),
            ("layers", "heads", "head_dim", "embed"),
            out_std,
        )
        if c.qk_norm:
            self.q_norm = RMSNorm((c.layers, c.head_dim), ("layers", "norm"), c.norm_eps)
            self.k_norm = RMSNorm((c.layers, c.head_dim), ("layers", "norm"), c.norm_eps)

    def project(self, x_BxSxD: jax.Array, tables) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, S, H, K], keys and values [B, S, G, K], normed and rotated."""
        dtype = x_BxSxD.dtype
        q = jnp.einsum("bsd,dhk->bshk", x_BxSxD, self.q[...].astype(dtype))
        k = jnp.einsum("bsd,dgk->bsgk", x_BxSxD, self.k[...].astype(dtype))
        v = jnp.einsum("bsd,dgk->bsgk", x_BxSxD, self.v[...].astype(dtype))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, tables), rotate(k, tables), v

    def output(self, heads_BxSxHxK: jax.Array) -> jax.Array:
        """Heads -> the residual stream, [B, S, D]."""
        return jnp.einsum("bshk,hkd->bsd", heads_BxSxHxK, self.o[...].astype(heads_BxSxHxK.dtype))

    def step(
        self, x_Bx1xD: jax.Array, positions_B: jax.Array, cache: LayerCache, tables
    ) -> tuple[jax.Array, LayerCache]:
        """One token per sequence, at its own position; writes its key and value to the cache."""
        q, k, v = self.project(x_Bx1xD, tables)
        keys, values = (
            _write(c, new[:, 0].astype(c.dtype), positions_B)
            for c, new in zip(cache, (k, v), strict=True)
        )
        out_BxHxK = cached_attention(q[:, 0], keys, values, positions_B + 1)
        return self.output(out_BxHxK[:, None]), (keys, values)

    def __call__(
        self, x_BxSxD: jax.Array, segments_BxS: jax.Array, tables
    ) -> tuple[jax.Array, LayerCache]:
        """What attention adds to the residual stream; and keys and values, [B, G, S, K]."""
        q, k, v = self.project(x_BxSxD, tables)
        # Constrained twice, or the whole sequence is gathered before the projections.
        parts = (constrain(a, "batch", "length", "heads", None) for a in (q, k, v))
        whole = (constrain(a, "batch", None, "act_heads", None) for a in parts)
        q, k, v = (checkpoint_name(a, QKV) for a in whole)
        c = self.config
        out = attention(
            *(q, k, v, segments_BxS), implementation=c.attention, max_documents=c.max_documents
        )
        out = constrain(out, "batch", None, "act_heads", None)
        out = constrain(out, "batch", "length", "heads", None)
        return self.output(out), (k.swapaxes(1, 2), v.swapaxes(1, 2))


def _write(cache_BxGxTxK: jax.Array, new_BxGxK: jax.Array, positions_B: jax.Array) -> jax.Array:
    """The cache with each row's new entry at its position."""
    entries_BxGx1xK = new_BxGxK[:, :, None]

    def row(cache: jax.Array, entry: jax.Array, position: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cache, entry, (0, position, 0))

    return jax.vmap(row)(cache_BxGxTxK, entries_BxGx1xK, positions_B)


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020) of all layers; parameters [L, ...]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = config
        into, out_of = ("layers", "embed", "ffn"), ("layers", "ffn", "embed")
        self.gate = weight(rngs, (c.layers, c.width, c.ffn), into, c.width**-0.5)
        self.up = weight(rngs, (c.layers, c.width, c.ffn), into, c.width**-0.5)
        out_std = c.ffn**-0.5 * (2 * c.layers) ** -0.5
        self.down = weight(rngs, (c.layers, c.ffn, c.width), out_of, out_std)

    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        dtype = x_BxSxD.dtype
        gate = up_projection(x_BxSxD, self.gate[...].astype(dtype))
        up = up_projection(x_BxSxD, self.up[...].astype(dtype))
        gate, up = checkpoint_name(gate, GATE), checkpoint_name(up, UP)
        hidden = constrain(swiglu(gate, up), "batch", "length", "act_ffn")
        return down_projection(hidden, self.down[...].astype(dtype))


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each after a norm, with residual connections."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        stacked = (config.layers, config.width), ("layers", "norm")
        self.attention_norm = RMSNorm(*stacked, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.ffn_norm = RMSNorm(*stacked, config.norm_eps)
        self.ffn = FeedForward(config, rngs)

    def __call__(
        self, x_BxSxD: jax.Array, segments_BxS: jax.Array, tables
    ) -> tuple[jax.Array, LayerCache]:
        """The residual stream after this layer; and its keys and values, [B, G, S, K]."""
        attended, kv = self.attention(self.attention_norm(x_BxSxD), segments_BxS, tables)
        x_BxSxD = checkpoint_name(x_BxSxD + attended, OUTPUT)
        x_BxSxD += self.ffn(self.ffn_norm(x_BxSxD))
        return constrain(x_BxSxD, "batch", "length", "act_embed"), kv

    def step(
        self, x_Bx1xD: jax.Array, positions_B: jax.Array, cache: LayerCache, tables
    ) -> tuple[jax.Array, LayerCache]:
        """One token of each sequence; see `decoding.step`."""
        normed = self.attention_norm(x_Bx1xD)
        attended, cache = self.attention.step(normed, positions_B, cache, tables)
        x_Bx1xD += attended
        return x_Bx1xD + self.ffn(self.ffn_norm(x_Bx1xD)), cache


class Llama(nnx.Module):
    """The whole model.

    Args:
      config: its shape.
      rngs: the stream "params" samples the initial weights, which depend on the seed alone, not on
        the mesh or the number of processes.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = config
        self.config = c
        self.embed = weight(rngs, (c.vocab_size, c.width), ("vocab", "embed"), 1.0)
        self.blocks = Block(c, rngs)
        self.norm = RMSNorm((c.width,), ("norm",), c.norm_eps)
        if not c.tied:
            self.head = weight(rngs, (c.width, c.vocab_size), ("embed", "vocab"), c.width**-0.5)

    def embed_tokens(self, tokens_BxS: jax.Array) -> jax.Array:
        """int [B, S] -> [B, S, D] in the compute type."""
        x_BxSxD = embedding_lookup(self.embed[...].astype(self.config.dtype), tokens_BxS)
        return constrain(x_BxSxD, "batch", "length", "act_embed")

    def logits(self, x_BxSxD: jax.Array) -> jax.Array:
        """The residual stream -> float32 [B, S, V]."""
        head_DxV = self.embed[...].T if self.config.tied else self.head[...]
        x_BxSxD = self.norm(x_BxSxD)
        return jnp.einsum(
            "bsd,dv->bsv",
            x_BxSxD,
            head_DxV.astype(x_BxSxD.dtype),
            preferred_element_type=jnp.float32,
        )

    def __call__(
        self, tokens_BxS: jax.Array, segments_BxS: jax.Array, positions_BxS: jax.Array
    ) -> jax.Array:
        """Logits of the next token.

        Args:
          tokens_BxS: int32 [batch, length].
          segments_BxS: int32, the document of each token; 0 is padding.
          positions_BxS: int32, the position of each token in its document.

        Returns:
          float32 [batch, length, vocabulary].
        """
        c = self.config
        tables = rope_tables(positions_BxS, c.head_dim, c.rope_theta)
        graph, layers = nnx.split(self.blocks)

        def layer(x_BxSxD: jax.Array, weights: Any) -> tuple[jax.Array, None]:
            return nnx.merge(graph, weights)(x_BxSxD, segments_BxS, tables)[0], None

        if c.remat != "none":
            policy = REMAT_POLICIES[c.remat]
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        x_BxSxD, _ = jax.lax.scan(
            layer, self.embed_tokens(tokens_BxS), layers, unroll=c.scan_unroll
        )
        return self.logits(x_BxSxD)
