"""DINOv2 vision transformers, an alternative to Inception as feature extractor.

Weights are a Hugging Face checkpoint's model.safetensors (facebook/dinov2-small, -base, -large:
Oquab et al., arXiv 2304.07193). The feature is the class token after the last norm, as in
FD-DINOv2 (Stein et al., arXiv 2306.04675). Images are resized to 224 x 224 with Pillow's
antialiased bicubic filter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evals.features import resize
from evals.features.base import Extractor, WeightsError
from evals.features.features import on_devices
from evals.features.weights import Weights

SIZE = 224
_HEAD = 64  # all published sizes
_EPSILON = 1e-6
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_PRECISION = jax.lax.Precision.HIGHEST


def extractor(weights: Weights) -> Extractor:
    """DINOv2 with the given weights. Raises WeightsError for those of another network."""
    params = load(weights.tensors)

    def prepare(image: np.ndarray) -> np.ndarray:
        pixels = resize.resized(image, (SIZE, SIZE), "clean")
        return (pixels / np.float32(255) - _MEAN) / _DEVIATION

    settings = {"weights": weights.name, "weights_sha256": weights.sha256, "size": SIZE}
    apply = on_devices(lambda params, x: {"class_token": class_token(params, x)}, params)
    return Extractor("dinov2", "class_token", settings, prepare, apply)


def load(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters from the checkpoint's tensors: layers stacked, position embeddings of 224 x 224.

    Raises WeightsError for tensors that are missing.
    """
    tensors = {name.removeprefix("dinov2."): tensor for name, tensor in tensors.items()}
    try:
        return _load(tensors)
    except KeyError as missing:
        raise WeightsError(
            f"the weights have no {missing.args[0]}; expected model.safetensors of DINOv2 small, "
            "base or large from Hugging Face (the giant one has another feed-forward layer)"
        ) from None


def _load(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def get(name: str) -> jax.Array:
        return jnp.asarray(tensors[name], jnp.float32)

    depth = 1 + max(
        (
            int(found[1])
            for name in tensors
            if (found := re.match(r"encoder\.layer\.(\d+)\.", name))
        ),
        default=0,
    )

    def stacked(name: str) -> jax.Array:
        return jnp.stack([get(f"encoder.layer.{layer}.{name}") for layer in range(depth)])

    def linear(name: str) -> tuple[jax.Array, jax.Array]:
        return stacked(f"{name}.weight").swapaxes(1, 2), stacked(f"{name}.bias")

    kernel = get("embeddings.patch_embeddings.projection.weight")
    return {
        "patch": kernel.transpose(2, 3, 1, 0),
        "patch_bias": get("embeddings.patch_embeddings.projection.bias"),
        "class_token": get("embeddings.cls_token"),
        "positions": _positions(get("embeddings.position_embeddings"), kernel.shape[-1]),
        "norm": (get("layernorm.weight"), get("layernorm.bias")),
        "layers": {
            "norm1": (stacked("norm1.weight"), stacked("norm1.bias")),
            "query": linear("attention.attention.query"),
            "key": linear("attention.attention.key"),
            "value": linear("attention.attention.value"),
            "output": linear("attention.output.dense"),
            "scale1": stacked("layer_scale1.lambda1"),
            "norm2": (stacked("norm2.weight"), stacked("norm2.bias")),
            "fc1": linear("mlp.fc1"),
            "fc2": linear("mlp.fc2"),
            "scale2": stacked("layer_scale2.lambda1"),
        },
    }


def _positions(stored: jax.Array, patch: int) -> jax.Array:
    """Position embeddings [1, 1 + patches, width] for 224 x 224, from those of pretraining.

    Resized as PyTorch's bicubic interpolation does it: a = -0.75, not antialiased.
    """
    side, wanted = round((stored.shape[1] - 1) ** 0.5), SIZE // patch
    if side == wanted:
        return stored
    weights = jnp.asarray(resize.torch_bicubic(side, wanted), jnp.float32)
    grid = stored[0, 1:].reshape(side, side, -1)
    grid = jnp.einsum("ab,cd,bde->ace", weights, weights, grid, precision=_PRECISION)
    return jnp.concatenate([stored[:, :1], grid.reshape(1, wanted * wanted, -1)], axis=1)


def class_token(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Normalised images [B, 224, 224, 3] -> class tokens after the last norm, [B, width]."""
    patch = params["patch"].shape[0]
    x = jax.lax.conv_general_dilated(
        x,
        params["patch"],
        (patch, patch),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_PRECISION,
    )
    x = x.reshape(len(x), -1, x.shape[-1]) + params["patch_bias"]
    first = jnp.broadcast_to(params["class_token"], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + params["positions"]
    x, _ = jax.lax.scan(lambda x, layer: (_layer(layer, x), None), x, params["layers"])
    return _norm(x[:, 0], params["norm"])


def _layer(layer: Mapping[str, Any], x: jax.Array) -> jax.Array:
    normed = _norm(x, layer["norm1"])
    query, key, value = (
        _linear(normed, layer[name]).reshape(*x.shape[:2], -1, _HEAD)
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=_PRECISION) / _HEAD**0.5
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value, precision=_PRECISION)
    x = x + _linear(mixed.reshape(x.shape), layer["output"]) * layer["scale1"]
    hidden = jax.nn.gelu(_linear(_norm(x, layer["norm2"]), layer["fc1"]), approximate=False)
    return x + _linear(hidden, layer["fc2"]) * layer["scale2"]


def _linear(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.matmul(x, weights[0], precision=_PRECISION) + weights[1]


def _norm(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + _EPSILON) * weights[0] + weights[1]
