"""tokamax's attention for Hopper GPUs, in Pallas on Mosaic GPU: the optional extra [tokamax].

The successor of JAX's own kernel for GPUs. It skips the keys before a query's document, has no
bound on the number of documents, and takes grouped keys as they are. tokamax calls itself under
development, and needs Python 3.12 and JAX 0.11: so `auto` does not select it.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from jpeglm_jax.hardware import chips
from jpeglm_jax.model.kernels import documents
from jpeglm_jax.model.kernels.shape import AttentionShape


def obstacle(shape: AttentionShape) -> str:
    """Why this kernel cannot take a shape; empty if it can."""
    if importlib.util.find_spec("tokamax") is None:
        return (
            "tokamax is not installed: pip install 'jpeglm_jax[tokamax]', with Python 3.12 or newer"
        )
    if chips.compute_capability(shape.device_kind) != 9.0:
        return f"tokamax's kernel is for Hopper GPUs, found {shape.device_kind}"
    if shape.dtype not in ("bfloat16", "float16"):
        return f"tokamax's kernel computes in bfloat16, found model.dtype={shape.dtype}"
    if shape.head_dim % 64:
        return (
            "tokamax's kernel needs heads of a multiple of 64, found "
            f"model.head_dim={shape.head_dim}"
        )
    return ""


def attention(
    q_BxSxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    segments_BxS: jax.Array,
    *,
    name: str,
    plain: bool = False,
) -> jax.Array:
    """See `jpeglm_jax.model.attention.attention`; for what one device holds.

    Args:
      name: what is kept for the backward pass is called so for a remat policy.
      plain: run tokamax's plain form of the same operation, on any platform: for tests.
    """
    starts_BxS = documents.starts(segments_BxS)
    return _attention(q_BxSxHxK, k_BxSxGxK, v_BxSxGxK, starts_BxS, name, plain)


def _operation(plain: bool) -> Any:
    from tokamax._src.ops.attention import base, pallas_mosaic_gpu

    if plain:
        return base.DotProductAttention(vjp=base.DotProductAttentionVjp())
    return pallas_mosaic_gpu.PallasMosaicGpuFlashAttention()


def _bound(operation: Any, q, k, v, starts_BxS: jax.Array) -> Any:
    """The arguments of the operation, the mask as each query's first key, completed by tokamax."""
    from tokamax._src.ops.attention.base import Mask

    mask = Mask(k_start=starts_BxS[:, None], is_causal=True)
    return operation.bind(q, k, v, mask=mask, return_residuals=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, starts_BxS, name: str, plain: bool) -> jax.Array:
    return _forward(q, k, v, starts_BxS, name, plain)[0]


def _forward(q, k, v, starts_BxS, name: str, plain: bool):
    """The output, and what the backward pass needs."""
    operation = _operation(plain)
    bound = _bound(operation, q, k, v, starts_BxS)
    # Without the barrier XLA writes what is kept by a second call of the kernel.
    out, (maximum, total) = jax.lax.optimization_barrier(operation(*bound.args, **bound.kwargs))
    out, maximum, total = (checkpoint_name(x, name) for x in (out, maximum, total))
    return out, (q, k, v, starts_BxS, out, maximum, total)


def _backward(name: str, plain: bool, residuals, grad_out: jax.Array):
    q, k, v, starts_BxS, out, maximum, total = residuals
    operation = _operation(plain)
    bound = _bound(operation, q, k, v, starts_BxS)
    options = {key: x for key, x in bound.kwargs.items() if key != "return_residuals"}
    grads = operation.vjp((maximum, total), out, grad_out, *bound.args, **options)
    return grads["q"], grads["k"], grads["v"], None


_attention.defvjp(_forward, _backward)
