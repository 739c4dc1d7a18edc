"""Llama in Flax NNX: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

Nothing in here knows what the tokens stand for. Layers are stacked: the parameters of a `Block`
carry a leading axis of layers, and the forward pass scans over it, so that a deep model compiles
as fast as a shallow one. Weights are kept in float32 and cast to the compute type where used.

Dimensions in names: B batch, S length, D width, H heads, G key-value heads, K head size,
F feed-forward width, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jpeglm_jax.hardware import chips
from jpeglm_jax.model.attention import OUTPUT as attention_output
from jpeglm_jax.model.attention import attention, cached_attention
from jpeglm_jax.parallel.sharding import constrain

# Keys and values of one layer, [B, G, T, K] each: T is the longest sequence.
LayerCache = tuple[jax.Array, jax.Array]

_POLICIES = jax.checkpoint_policies
_QKV, _ATTENTION, _MLP = "qkv", attention_output, ("gate", "up")


def _offload(*names: str) -> Callable[..., Any]:
    """Keeps what is named in the host's memory, and nothing else."""
    return _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )


# What the backward pass keeps of a layer; everything else is computed again. From most memory and
# fewest operations to the other end.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,  # all
    "minimal_with_attention": _POLICIES.save_only_these_names(_QKV, _ATTENTION, *_MLP, "output"),
    "minimal": _POLICIES.dots_with_no_batch_dims_saveable,  # the projections
    "save_qkv_attention": _POLICIES.save_only_these_names(_QKV, _ATTENTION),
    "save_qkv": _POLICIES.save_only_these_names(_QKV),
    "save_attention": _POLICIES.save_only_these_names(_ATTENTION),
    "offload_qkv": _offload(_QKV),  # in the host's memory
    "offload_qkv_attention": _offload(_QKV, _ATTENTION),
    "full": _POLICIES.nothing_saveable,  # the layer's input alone
}
# Those under which attention runs only once: its output, and its normaliser, are kept.
KEEP_ATTENTION = {
    "none",
    "minimal_with_attention",
    "save_qkv_attention",
    "save_attention",
    "offload_qkv_attention",
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, and how it computes. Defaults are the paper's (Llama-2 7B)."""

    vocab_size: int
    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    ffn: int = 11008
    norm_eps: float = 1e-5
    rope_theta: float = 1e4
    qk_norm: bool = False
    tied: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        if self.remat not in REMAT_POLICIES:
            raise ValueError(
                f"model.remat is {self.remat!r}; expected one of {', '.join(REMAT_POLICIES)}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.kv_heads = {self.kv_heads} does not divide model.heads = {self.heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim is {self.head_dim}; rotary positions need it even")

    @property
    def recomputes_attention(self) -> bool:
        """Does the backward pass run the attention's forward pass again?"""
        return self.remat not in KEEP_ATTENTION


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws of the standard normal distribution, float32: of 65,536 quantiles, none beyond 4.33.

    Random bits look each draw up, so that no compiler rounds it in its own way and it is the same
    whatever the sharding. With JAX 0.12 on a CPU a twentieth of what `jax.random.normal` draws
    differs in its last bit between one device and eight.
    """
    places = (np.arange(2**16) + 0.5) / 2**16
    quantiles = jnp.asarray(scipy.special.ndtri(places), jnp.float32)
    return quantiles[jax.random.bits(key, shape, jnp.uint16)]


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], stddev: float
) -> nnx.Param:
    """A float32 parameter of normal draws that knows the logical axis of each dimension."""
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


def rope_tables(positions_BxS: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, ...]:
    """Cosines and sines of the rotary angles (Su et al. 2021), float32 [B, S, 1, K] each.

    Both stand twice, for the two halves of a head; the sines of the first half are negative.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BxS.astype(jnp.float32)[:, :, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def _swap_halves(x: jax.Array) -> jax.Array:
    """[..., K] with the two halves of K exchanged, float32."""
    half = x.shape[-1] // 2
    if chips.target()[0] != "tpu":
        return jnp.roll(x.astype(jnp.float32), half, axis=-1)
    # A TPU's compiler would cut the halves out as arrays of their own, each padded to twice its
    # size. A product with a permutation gives the same numbers inside the operation around it.
    swap_KxK = jnp.roll(jnp.eye(2 * half, dtype=x.dtype), half, axis=0)
    return jnp.matmul(x, swap_KxK, precision="highest", preferred_element_type=jnp.float32)


def _turn(x_BxSxHxK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    turned = x_BxSxHxK.astype(jnp.float32) * cos + _swap_halves(x_BxSxHxK) * sin
    return turned.astype(x_BxSxHxK.dtype)


@jax.custom_vjp
def rotate(x_BxSxHxK: jax.Array, tables: tuple[jax.Array, ...]) -> jax.Array:
    """Turns the pairs (i, i + K/2), the pairing of `transformers`' Llama, by the angles.

    The input is written out in its own type: left to itself XLA fuses the conversion with the
    product before and writes float32, twice the bytes. The gradient is the same turn backwards:
    left to itself JAX would swap the halves of a float32 product, at several times the cost.
    """
    return _turn(jax.lax.optimization_barrier(x_BxSxHxK), *tables)


def _rotate_forward(x_BxSxHxK: jax.Array, tables: Any) -> tuple[jax.Array, Any]:
    return rotate(x_BxSxHxK, tables), tables


def _rotate_backward(tables: Any, g_BxSxHxK: jax.Array) -> tuple[jax.Array, None]:
    cos, sin = tables
    return _turn(g_BxSxHxK, cos, -sin), None


rotate.defvjp(_rotate_forward, _rotate_backward)


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
        self, x_Bx1xD: jax.Array, places_B: jax.Array, cache: LayerCache, tables
    ) -> tuple[jax.Array, LayerCache]:
        """One token of each sequence, at its own place; writes its key and value to the cache."""
        q, k, v = self.project(x_Bx1xD, tables)
        keys, values = (
            _write(c, new[:, 0].astype(c.dtype), places_B)
            for c, new in zip(cache, (k, v), strict=True)
        )
        out_BxHxK = cached_attention(q[:, 0], keys, values, places_B + 1)
        return self.output(out_BxHxK[:, None]), (keys, values)

    def __call__(
        self, x_BxSxD: jax.Array, segments_BxS: jax.Array, tables
    ) -> tuple[jax.Array, LayerCache]:
        """What attention adds to the stream; and keys and values, [B, G, S, K]."""
        q, k, v = self.project(x_BxSxD, tables)
        # Said twice, before and after: else the whole row is gathered ahead of the projections.
        parts = (constrain(a, "batch", "length", "heads", None) for a in (q, k, v))
        whole = (constrain(a, "batch", None, "act_heads", None) for a in parts)
        q, k, v = (checkpoint_name(a, "qkv") for a in whole)
        out = attention(q, k, v, segments_BxS, implementation=self.config.attention)
        out = constrain(out, "batch", None, "act_heads", None)
        out = constrain(out, "batch", "length", "heads", None)
        return self.output(out), (k.swapaxes(1, 2), v.swapaxes(1, 2))


def _write(cache_BxGxTxK: jax.Array, new_BxGxK: jax.Array, places_B: jax.Array) -> jax.Array:
    """The cache with each row's new entry at its place."""
    entries_BxGx1xK = new_BxGxK[:, :, None]

    def row(cache: jax.Array, entry: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cache, entry, (0, place, 0))

    return jax.vmap(row)(cache_BxGxTxK, entries_BxGx1xK, places_B)


def _swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up (Shazeer 2020), any shape.

    The result and its gradients are written out. Left to itself XLA computes them again inside
    every matrix product that reads them, which slows those on a TPU more than the writing costs.
    """
    return jax.lax.optimization_barrier(_swiglu(gate, up))


def _swiglu_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return swiglu(gate, up), (gate, up)


def _swiglu_backward(inputs: tuple[jax.Array, ...], d_hidden: jax.Array) -> tuple[jax.Array, ...]:
    d_gate, d_up = jax.vjp(_swiglu, *inputs)[1](d_hidden)
    # Each for itself: one can be used and dropped before the other is made.
    return jax.lax.optimization_barrier(d_gate), jax.lax.optimization_barrier(d_up)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


@jax.custom_vjp
def widen(x_BxSxD: jax.Array, weight_DxF: jax.Array) -> jax.Array:
    """`x @ weight` where F is larger than D: [B, S, F].

    The gradient of the weight is x^T g. Left to itself JAX writes it as (g^T x)^T, and the CPU back
    end then lays out the larger of the two anew: an eighth of the time of a small model's step.
    """
    return jnp.einsum("bsd,df->bsf", x_BxSxD, weight_DxF)


def _widen_forward(x_BxSxD: jax.Array, weight_DxF: jax.Array) -> tuple[jax.Array, Any]:
    return widen(x_BxSxD, weight_DxF), (x_BxSxD, weight_DxF)


def _widen_backward(saved: Any, g_BxSxF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BxSxD, weight_DxF = saved
    return (
        jnp.einsum("bsf,df->bsd", g_BxSxF, weight_DxF),
        jnp.einsum("bsd,bsf->df", x_BxSxD, g_BxSxF),
    )


widen.defvjp(_widen_forward, _widen_backward)


@jax.custom_vjp
def narrow(hidden_BxSxF: jax.Array, weight_FxD: jax.Array) -> jax.Array:
    """`hidden @ weight`: [B, S, D].

    The gradient of the weight is done before that of `hidden` is begun: then `hidden` is not kept
    beside its gradient.
    """
    return jnp.einsum("bsf,fd->bsd", hidden_BxSxF, weight_FxD)


def _narrow_forward(hidden_BxSxF: jax.Array, weight_FxD: jax.Array) -> tuple[jax.Array, Any]:
    return narrow(hidden_BxSxF, weight_FxD), (hidden_BxSxF, weight_FxD)


def _narrow_backward(saved: Any, g_BxSxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden_BxSxF, weight_FxD = saved
    d_weight_FxD = jnp.einsum("bsd,bsf->df", g_BxSxD, hidden_BxSxF).T
    g_BxSxD, d_weight_FxD = jax.lax.optimization_barrier((g_BxSxD, d_weight_FxD))
    return jnp.einsum("bsd,fd->bsf", g_BxSxD, weight_FxD), d_weight_FxD


narrow.defvjp(_narrow_forward, _narrow_backward)


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
        gate = widen(x_BxSxD, self.gate[...].astype(dtype))
        up = widen(x_BxSxD, self.up[...].astype(dtype))
        gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
        hidden = constrain(swiglu(gate, up), "batch", "length", "act_ffn")
        return narrow(hidden, self.down[...].astype(dtype))


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        stacked = (config.layers, config.width), ("layers", "norm")
        self.attention_norm = RMSNorm(*stacked, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.ffn_norm = RMSNorm(*stacked, config.norm_eps)
        self.ffn = FeedForward(config, rngs)

    def __call__(
        self, x_BxSxD: jax.Array, segments_BxS: jax.Array, tables
    ) -> tuple[jax.Array, LayerCache]:
        """The stream after this layer; and its keys and values, [B, G, S, K]."""
        attended, kv = self.attention(self.attention_norm(x_BxSxD), segments_BxS, tables)
        x_BxSxD = checkpoint_name(x_BxSxD + attended, "output")
        x_BxSxD += self.ffn(self.ffn_norm(x_BxSxD))
        return constrain(x_BxSxD, "batch", "length", "act_embed"), kv

    def step(
        self, x_Bx1xD: jax.Array, places_B: jax.Array, cache: LayerCache, tables
    ) -> tuple[jax.Array, LayerCache]:
        """One token of each sequence; see `decoding.step`."""
        normed = self.attention_norm(x_Bx1xD)
        attended, cache = self.attention.step(normed, places_B, cache, tables)
        x_Bx1xD += attended
        return x_Bx1xD + self.ffn(self.ffn_norm(x_Bx1xD)), cache


@jax.custom_vjp
def look_up(table_VxD: jax.Array, tokens_BxS: jax.Array) -> jax.Array:
    """Rows of a table: [B, S, D].

    The table's gradient is a product with the tokens' one-hot vectors. Left to itself JAX adds up
    row by row, where a codec's few tokens meet in the same rows.
    """
    return table_VxD[tokens_BxS]


def _look_up_forward(table_VxD: jax.Array, tokens_BxS: jax.Array) -> tuple[jax.Array, Any]:
    return look_up(table_VxD, tokens_BxS), (tokens_BxS, table_VxD.shape[0])


def _look_up_backward(saved: Any, g_BxSxD: jax.Array) -> tuple[jax.Array, None]:
    tokens_BxS, rows = saved
    one_hot_BxSxV = (tokens_BxS[..., None] == jnp.arange(rows)).astype(g_BxSxD.dtype)
    return jnp.einsum("bsv,bsd->vd", one_hot_BxSxV, g_BxSxD), None


look_up.defvjp(_look_up_forward, _look_up_backward)


class Llama(nnx.Module):
    """The whole model.

    Args:
      config: its shape.
      rngs: the stream "params" draws the initial weights, which depend on the seed alone: not on
        the mesh, nor on the number of processes.
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
        x_BxSxD = look_up(self.embed[...].astype(self.config.dtype), tokens_BxS)
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
          positions_BxS: int32, the place of each token in its document.

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
