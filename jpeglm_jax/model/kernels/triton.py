"""The Pallas kernel for GPUs that comes with JAX, on Triton; it masks by segment ids.

`jax.experimental.pallas.ops.gpu.attention`, deprecated since JAX 0.11: for GPUs before Hopper, and
as long as it is there. It knows one head of keys per head of queries, so grouped keys are repeated.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jpeglm_jax.model.kernels.shape import AttentionShape

BLOCK = 64  # positions at a time: what fits an H100's shared memory at a head size of 128
MODULE = "jax.experimental.pallas.ops.gpu.attention"


def obstacle(shape: AttentionShape) -> str:
    """Why this kernel cannot take a shape; empty if it can."""
    block = min(BLOCK, shape.length)
    if shape.length % block or block & (block - 1):
        return (
            f"the Triton kernel needs a sequence length that is a multiple of {BLOCK} (or a power "
            f"of two below it), found {shape.length}"
        )
    try:
        found = importlib.util.find_spec(MODULE)
    except ModuleNotFoundError:
        found = None
    return "" if found else f"JAX {jax.__version__} has no {MODULE} any more"


def _pallas() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(MODULE)


def attention(
    q_BxSxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    segments_BxS: jax.Array,
    *,
    name: str,
    interpret: bool = False,
) -> jax.Array:
    """See `jpeglm_jax.model.attention.attention`; for what one device holds.

    Args:
      name: what is kept for the backward pass is called so for a remat policy.
      interpret: run the kernel's program in plain JAX, on any platform.
    """
    repeats = q_BxSxHxK.shape[2] // k_BxSxGxK.shape[2]
    k, v = (jnp.repeat(x, repeats, axis=2) for x in (k_BxSxGxK, v_BxSxGxK))
    return _attention(q_BxSxHxK, k, v, segments_BxS, name, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, segments_BxS, name: str, interpret: bool) -> jax.Array:
    return _forward(q, k, v, segments_BxS, name, interpret)[0]


def _options(q: jax.Array, interpret: bool) -> dict[str, Any]:
    block = min(BLOCK, q.shape[1])
    return dict(
        sm_scale=q.shape[3] ** -0.5,
        causal=True,
        block_sizes=_pallas().BlockSizes(block, block, block, block, block, block),
        backward_pass_impl="triton",
        num_warps=None,
        num_stages=2,
        grid=None,
        interpret=interpret,
        debug=False,
    )


def _forward(q, k, v, segments_BxS, name: str, interpret: bool):
    """The output, and what the backward pass needs."""
    options = _options(q, interpret)
    out, normaliser = _pallas().mha(q, k, v, segments_BxS, **options, return_residuals=True)
    out, normaliser = (checkpoint_name(x, name) for x in (out, normaliser))
    return out, (q, k, v, segments_BxS, out, normaliser)


def _backward(name: str, interpret: bool, residuals, grad_out: jax.Array):
    # The kernel's own rule, without its forward pass, whose residuals have no names.
    options = _options(residuals[0], interpret) | {"return_residuals": False}
    return _pallas().mha.bwd(*options.values(), residuals, grad_out)


_attention.defvjp(_forward, _backward)
