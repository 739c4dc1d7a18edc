"""FLOPs of a tokenizer, per image: of its training, of encoding and of decoding.

They are counted in the traced program: two per multiplication of a convolution or a matrix product;
nothing else is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jpeglm_jax.tokenizer.step import TokenizerStep

FORMULA = (
    "3 x forward pass of encoder, quantiser and decoder + 3 x that of the perceptual "
    "network + 8 x that of the discriminator in the steps that use it"
)


def train_flops_per_image(step: TokenizerStep) -> float:
    """FLOPs of a training step per image, the mean over the steps of the run; see FORMULA.

    A backward pass counts as two forward passes. The perceptual network sees the image and the
    reconstruction, and passes gradients of the latter to its pixels alone. The discriminator sees
    the reconstruction once more, and its own step costs three passes for each of the two.
    """
    image = _image(step)
    total = 3.0 * (encode_flops_per_image(step) + decode_flops_per_image(step))
    if step.features is not None:
        features = step.features
        total += 3.0 * count(lambda x: list(features(x)), image)
    if step.uses_discriminator:
        params = step.abstract_state().params["discriminator"]
        share = 1 - step.adversarial_start / step.config.steps
        total += share * 8.0 * count(step.verdicts, params, image)
    return total


def encode_flops_per_image(step: TokenizerStep) -> float:
    """FLOPs of encoding an image as codes."""
    tokenizer = step.tokenizer

    def encode(params: Any, pixels: jax.Array) -> jax.Array:
        return tokenizer.codes(params, tokenizer.latents(params, pixels))

    return count(encode, step.abstract_state().params, _image(step))


def decode_flops_per_image(step: TokenizerStep) -> float:
    """FLOPs of decoding the codes of an image."""
    tokenizer, grid = step.tokenizer, step.tokenizer.config.grid

    def decode(params: Any, codes: jax.Array) -> jax.Array:
        return tokenizer.pixels(params, tokenizer.values(params, codes))

    codes = jax.ShapeDtypeStruct((1, grid, grid), jnp.int32)
    return count(decode, step.abstract_state().params, codes)


def _image(step: TokenizerStep) -> jax.ShapeDtypeStruct:
    c = step.tokenizer.config
    return jax.ShapeDtypeStruct((1, c.size, c.size, c.channels), jnp.float32)


def count(function: Callable[..., Any], *shapes: Any) -> float:
    """FLOPs of the convolutions and matrix products of a function.

    Args:
      function: traced, not run.
      shapes: of its arguments.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*shapes).jaxpr)


def _of_jaxpr(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * size * math.prod(kernel) / outputs
        elif name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * size * math.prod(shape[axis] for axis in contracted)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                total += _of_jaxpr(getattr(inner, "jaxpr", inner))
    return total


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
