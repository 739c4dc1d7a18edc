"""Causal attention within documents: one function, chosen by platform and shape.

A row holds several documents. A token sees the tokens before it in its own document and nothing
else; padding has segment 0 and sees only padding, which the loss never reads.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jpeglm_jax.hardware import chips
from jpeglm_jax.model.kernels.shape import AttentionShape
from jpeglm_jax.parallel import sharding

# Name -> the platforms it runs on, the fastest first.
IMPLEMENTATIONS = {
    "splash": ("tpu",),
    "cudnn": ("gpu",),
    "tokamax": ("gpu",),
    "triton": ("gpu",),
    "xla": ("cpu", "gpu", "tpu"),
    "chunked": ("cpu", "gpu", "tpu"),
}
# A kernel is a module of that name in jpeglm_jax/model/kernels.
KERNELS = ("splash", "cudnn", "tokamax", "triton")
# What "auto" can be, in this order.
AUTO = ("splash", "cudnn", "triton")
# Up to this sequence length "auto" computes the plain form at once where no kernel can.
PLAIN_LENGTH = 2048
# What the output (and what a kernel needs with it backwards) is called for a remat policy.
OUTPUT = "attention"


def document_mask(segments_BxS: jax.Array) -> jax.Array:
    """segments, int [B, S] -> bool [B, S, S]: may the query (axis 1) see the key (axis 2)?"""
    length = segments_BxS.shape[1]
    causal_SxS = jnp.tril(jnp.ones((length, length), bool))
    same_BxSxS = segments_BxS[:, :, None] == segments_BxS[:, None, :]
    return same_BxSxS & causal_SxS[None]


def _kernel(name: str) -> Any:
    """The module of a kernel, imported where it is used: Pallas takes a second to import."""
    return importlib.import_module(f"jpeglm_jax.model.kernels.{name}")


def choose(implementation: str, platform: str, shape: AttentionShape) -> str:
    """The implementation that a name in a configuration means.

    "auto" is the first of AUTO that runs on the platform and can take the shape: splash on a TPU,
    cuDNN on a Hopper GPU, Triton on another; else the plain form, in chunks where rows are long.

    Raises:
      ValueError: an unknown name, a kernel for another platform, or one that cannot take the shape.
    """
    if implementation == "auto":
        able = (name for name in AUTO if platform in IMPLEMENTATIONS[name])
        plain = "xla" if platform == "cpu" or shape.length <= PLAIN_LENGTH else "chunked"
        return next((name for name in able if not _kernel(name).obstacle(shape)), plain)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"model.attention is {implementation!r}; expected auto or one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if platform not in IMPLEMENTATIONS[implementation]:
        others = [name for name, runs_on in IMPLEMENTATIONS.items() if platform in runs_on]
        raise ValueError(
            f"model.attention is {implementation}, a kernel for "
            f"{' and '.join(IMPLEMENTATIONS[implementation])}; on {platform} there are "
            f"{', '.join(others)}"
        )
    _check(implementation, shape)
    return implementation


def _check(name: str, shape: AttentionShape) -> None:
    if name in KERNELS and (reason := _kernel(name).obstacle(shape)):
        raise ValueError(f"{reason}; set model.attention to auto or chunked")


def attention(
    q_BxSxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    segments_BxS: jax.Array,
    *,
    implementation: str = "auto",
    max_documents: int = 16,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention within documents; scores and softmax in float32.

    Args:
      q_BxSxHxK: queries, float [batch, length, heads, head_dim].
      k_BxSxGxK, v_BxSxGxK: keys and values; G groups divide the H heads (grouped-query attention).
      segments_BxS: int, the document of each token; 0 is padding.
      implementation: "auto" or one of IMPLEMENTATIONS; see `choose`.
      max_documents: documents that a row may hold, padding counted as one. cuDNN's program has
        this size.
      interpret: run the program of a Pallas kernel in plain JAX, on any platform: for tests.

    Returns:
      float [batch, length, heads, head_dim], the dtype of q.

    Raises:
      ValueError: an implementation that is unknown, or cannot take this platform or these
        shapes; groups that do not divide the heads.
    """
    platform, kind = chips.target()
    length, heads, head_dim = q_BxSxHxK.shape[1:]
    groups = k_BxSxGxK.shape[2]
    if heads % groups:
        raise ValueError(f"{groups} key-value heads do not divide {heads} heads")
    shape = AttentionShape(length, head_dim, q_BxSxHxK.dtype.name, max_documents, kind)
    if interpret:
        _check(implementation, shape)
        name = implementation
    else:
        name = choose(implementation, platform, shape)
    arrays = q_BxSxHxK, k_BxSxGxK, v_BxSxGxK, segments_BxS
    if name in KERNELS:
        # A kernel names what it keeps for the backward pass itself: more than its output.
        options: dict[str, Any] = {"name": OUTPUT}
        if name == "cudnn":
            options["max_documents"] = max_documents
        elif interpret:
            options["interpret"] = True
        return _on_each_device(functools.partial(_kernel(name).attention, **options), *arrays)
    if name == "chunked":
        out = _kernel(name).attention(*arrays, _xla)
    else:
        out = _xla(*arrays[:3], document_mask(segments_BxS))
    return checkpoint_name(out, OUTPUT)


def _on_each_device(kernel: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Runs a kernel, which knows one device, on every device's rows and heads."""
    heads = sharding.spec("batch", None, "act_heads", None)
    return sharding.on_each_device(
        kernel, in_specs=(heads, heads, heads, sharding.spec("batch", None)), out_specs=heads
    )(*arrays)


def _xla(q_BxSxHxK, k_BxTxGxK, v_BxTxGxK, mask_BxSxT) -> jax.Array:
    """The plain form, and the reference that every kernel is compared with.

    Heads are moved before the length, so that both products are batches of plain matrix products:
    left to itself the CPU back end multiplies in the [length, heads] layout several times slower.
    """
    batch, length, heads, head_dim = q_BxSxHxK.shape
    groups = k_BxTxGxK.shape[2]
    q = q_BxSxHxK.reshape(batch, length, groups, heads // groups, head_dim)
    q_BxGxRxSxK = q.transpose(0, 2, 3, 1, 4) * head_dim**-0.5
    k_BxGxTxK = k_BxTxGxK.transpose(0, 2, 1, 3)
    v_BxGxTxK = v_BxTxGxK.transpose(0, 2, 1, 3)
    scores = jnp.einsum(
        "bgrsk,bgtk->bgrst", q_BxGxRxSxK, k_BxGxTxK, preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask_BxSxT[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(v_BxTxGxK.dtype)
    out = jnp.einsum("bgrst,bgtk->bgrsk", probs, v_BxGxTxK)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def cached_attention(
    q_BxHxK: jax.Array, k_BxGxTxK: jax.Array, v_BxGxTxK: jax.Array, filled_B: jax.Array
) -> jax.Array:
    """Attention of one new token per sequence to a cache, of which `filled_B` entries count.

    Returns:
      float [batch, heads, head_dim], the dtype of q.
    """
    batch, heads, head_dim = q_BxHxK.shape
    groups, longest = k_BxGxTxK.shape[1:3]
    q_BxGxRxK = q_BxHxK.reshape(batch, groups, heads // groups, head_dim) * head_dim**-0.5
    scores = jnp.einsum("bgrk,bgtk->bgrt", q_BxGxRxK, k_BxGxTxK, preferred_element_type=jnp.float32)
    counts_BxT = jnp.arange(longest) < filled_B[:, None]
    scores = jnp.where(counts_BxT[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(v_BxGxTxK.dtype)
    return jnp.einsum("bgrt,bgtk->bgrk", probs, v_BxGxTxK).reshape(batch, heads, head_dim)
