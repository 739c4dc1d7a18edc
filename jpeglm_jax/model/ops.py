"""Operations of the model with custom gradients or layouts, written for the program XLA compiles.

`model.llama` calls them in training and in decoding.

Dimensions in names: B batch, S sequence length, D width, H heads, K head size, F feed-forward
width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jpeglm_jax.hardware import chips


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Samples of the standard normal distribution, float32: 65,536 quantiles, none beyond 4.33.

    Random bits index a table, so that the samples do not depend on a compiler's rounding and are
    the same for any sharding. With JAX 0.12 on a CPU a twentieth of the samples of
    `jax.random.normal` differ in their last bit between one device and eight.
    """
    probabilities = (np.arange(2**16) + 0.5) / 2**16
    quantiles = jnp.asarray(scipy.special.ndtri(probabilities), jnp.float32)
    return quantiles[jax.random.bits(key, shape, jnp.uint16)]


def rope_tables(positions_BxS: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, ...]:
    """Cosines and sines of the rotary angles (Su et al. 2021), float32 [B, S, 1, K] each.

    Each is repeated for the two halves of a head; the sines of the first half are negative.
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
    # A TPU's compiler would slice the halves into arrays of their own, each padded to twice its
    # size. A product with a permutation matrix gives the same numbers and is fused.
    swap_KxK = jnp.roll(jnp.eye(2 * half, dtype=x.dtype), half, axis=0)
    return jnp.matmul(x, swap_KxK, precision="highest", preferred_element_type=jnp.float32)


def _rotate(x_BxSxHxK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    rotated = x_BxSxHxK.astype(jnp.float32) * cos + _swap_halves(x_BxSxHxK) * sin
    return rotated.astype(x_BxSxHxK.dtype)


@jax.custom_vjp
def rotate(x_BxSxHxK: jax.Array, tables: tuple[jax.Array, ...]) -> jax.Array:
    """Rotates the pairs (i, i + K/2), the pairing of `transformers`' Llama, by the angles.

    The input is materialised in its own type: XLA would fuse the conversion with the product before
    and write float32, twice the bytes. The gradient is the rotation by the negative angles: JAX
    would swap the halves of a float32 product, at several times the cost.
    """
    return _rotate(jax.lax.optimization_barrier(x_BxSxHxK), *tables)


def _rotate_forward(x_BxSxHxK: jax.Array, tables: Any) -> tuple[jax.Array, Any]:
    return rotate(x_BxSxHxK, tables), tables


def _rotate_backward(tables: Any, g_BxSxHxK: jax.Array) -> tuple[jax.Array, None]:
    cos, sin = tables
    return _rotate(g_BxSxHxK, cos, -sin), None


rotate.defvjp(_rotate_forward, _rotate_backward)


def _swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up (Shazeer 2020), any shape.

    The result and its gradients are materialised. XLA would compute them again inside every matrix
    product that reads them, which slows those on a TPU more than the writing costs.
    """
    return jax.lax.optimization_barrier(_swiglu(gate, up))


def _swiglu_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return swiglu(gate, up), (gate, up)


def _swiglu_backward(inputs: tuple[jax.Array, ...], d_hidden: jax.Array) -> tuple[jax.Array, ...]:
    d_gate, d_up = jax.vjp(_swiglu, *inputs)[1](d_hidden)
    # Separate barriers: one gradient can be used and freed before the other is computed.
    return jax.lax.optimization_barrier(d_gate), jax.lax.optimization_barrier(d_up)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


@jax.custom_vjp
def up_projection(x_BxSxD: jax.Array, weight_DxF: jax.Array) -> jax.Array:
    """`x @ weight` where F is larger than D: [B, S, F].

    The gradient of the weight is x^T g. JAX would write it as (g^T x)^T, and the CPU back end would
    then transpose the larger of the two: an eighth of the time of a small model's step.
    """
    return jnp.einsum("bsd,df->bsf", x_BxSxD, weight_DxF)


def _up_projection_forward(x_BxSxD: jax.Array, weight_DxF: jax.Array) -> tuple[jax.Array, Any]:
    return up_projection(x_BxSxD, weight_DxF), (x_BxSxD, weight_DxF)


def _up_projection_backward(saved: Any, g_BxSxF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BxSxD, weight_DxF = saved
    return (
        jnp.einsum("bsf,df->bsd", g_BxSxF, weight_DxF),
        jnp.einsum("bsd,bsf->df", x_BxSxD, g_BxSxF),
    )


up_projection.defvjp(_up_projection_forward, _up_projection_backward)


@jax.custom_vjp
def down_projection(hidden_BxSxF: jax.Array, weight_FxD: jax.Array) -> jax.Array:
    """`hidden @ weight`: [B, S, D].

    The gradient of the weight is computed before that of `hidden`, so that `hidden` and its
    gradient are not in memory together.
    """
    return jnp.einsum("bsf,fd->bsd", hidden_BxSxF, weight_FxD)


def _down_projection_forward(
    hidden_BxSxF: jax.Array, weight_FxD: jax.Array
) -> tuple[jax.Array, Any]:
    return down_projection(hidden_BxSxF, weight_FxD), (hidden_BxSxF, weight_FxD)


def _down_projection_backward(saved: Any, g_BxSxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden_BxSxF, weight_FxD = saved
    d_weight_FxD = jnp.einsum("bsd,bsf->df", g_BxSxD, hidden_BxSxF).T
    g_BxSxD, d_weight_FxD = jax.lax.optimization_barrier((g_BxSxD, d_weight_FxD))
    return jnp.einsum("bsd,fd->bsf", g_BxSxD, weight_FxD), d_weight_FxD


down_projection.defvjp(_down_projection_forward, _down_projection_backward)


@jax.custom_vjp
def embedding_lookup(table_VxD: jax.Array, tokens_BxS: jax.Array) -> jax.Array:
    """Rows of a table: [B, S, D].

    The table's gradient is a product with the one-hot vectors of the tokens. JAX would scatter-add
    row by row, where the few tokens of a codec collide in the same rows.
    """
    return table_VxD[tokens_BxS]


def _embedding_lookup_forward(table_VxD: jax.Array, tokens_BxS: jax.Array) -> tuple[jax.Array, Any]:
    return embedding_lookup(table_VxD, tokens_BxS), (tokens_BxS, table_VxD.shape[0])


def _embedding_lookup_backward(saved: Any, g_BxSxD: jax.Array) -> tuple[jax.Array, None]:
    tokens_BxS, rows = saved
    one_hot_BxSxV = (tokens_BxS[..., None] == jnp.arange(rows)).astype(g_BxSxD.dtype)
    return jnp.einsum("bsv,bsd->vd", one_hot_BxSxV, g_BxSxD), None


embedding_lookup.defvjp(_embedding_lookup_forward, _embedding_lookup_backward)
