"""DINOv2 vision transformers, an alternative to Inception as feature extractor.

Oquab et al., arXiv 2304.07193; Darcet et al., arXiv 2309.16588 (registers). Two forms of the same
weights are read: Meta's files (dinov2_vitl14_pretrain.pth, dinov2_vitg14_reg4_pretrain.pth, ...),
which dgm-eval uses, and model.safetensors of Hugging Face (facebook/dinov2-small to -giant,
facebook/dinov2-with-registers-*). The feature is the class token after the last norm, as in
FD-DINOv2 (Stein et al., arXiv 2306.04675). `extractors.make` chooses this network.

The code that belongs to each form resizes the position embeddings in its own way, and both are
followed:

    Meta's, without registers       bicubic, by a factor of (16 + 0.1) / side
    Meta's, with registers          bicubic, antialiased
    Hugging Face, without           bicubic
    Hugging Face, with registers    bicubic, antialiased
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evals.features import resize, vit
from evals.features.base import Extractor, WeightsError
from evals.features.features import on_devices
from evals.features.weights import Weights

SIZE = 224
_EPSILON = 1e-6
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_META_OFFSET = 0.1  # of the factor by which Meta's code resizes position embeddings

# Names in Meta's files -> names in Hugging Face's. Query, key and value are one tensor there.
_META_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}


def extractor(weights: Weights, preset: resize.Preset = "clean") -> Extractor:
    """DINOv2 with the given weights; images are resized to 224 x 224 by the preset's rule.

    Raises WeightsError for weights of another network.
    """
    params = load(weights.tensors)

    def prepare(image: np.ndarray) -> np.ndarray:
        pixels = resize.resized(image, (SIZE, SIZE), preset)
        return (pixels / np.float32(255) - _MEAN) / _DEVIATION

    settings = {
        "weights": weights.name,
        "weights_sha256": weights.sha256,
        "size": SIZE,
        "resize": preset,
        "position_embeddings": _interpolation(weights.tensors),
    }
    apply = on_devices(lambda params, x: {"class_token": class_token(params, x)}, params)
    return Extractor("dinov2", "class_token", settings, prepare, apply)


def _is_metas(tensors: Mapping[str, np.ndarray]) -> bool:
    return any(name.endswith(".attn.qkv.weight") for name in tensors)


def _interpolation(tensors: Mapping[str, np.ndarray]) -> str:
    """How position embeddings are resized, see the module docstring."""
    if any(name.endswith("register_tokens") for name in tensors):
        return "antialiased"
    return "offset" if _is_metas(tensors) else "bicubic"


def load(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters from a file's tensors: layers stacked, position embeddings of 224 x 224.

    Raises WeightsError for tensors that are missing or have other shapes than the rest.
    """
    interpolation = _interpolation(tensors)
    expected = "expected a file of DINOv2 small, base, large or giant, with or without registers"
    try:
        if _is_metas(tensors):
            return _load(_from_metas(tensors), interpolation)
        named = {name.removeprefix("dinov2."): tensor for name, tensor in tensors.items()}
        return _load(named, interpolation)
    except KeyError as missing:
        raise WeightsError(f"the weights have no {missing.args[0]}; {expected}") from None
    except (ValueError, TypeError) as error:  # of stacking, reshaping or products
        raise WeightsError(f"the weights' shapes do not fit: {error}; {expected}") from error


def _from_metas(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of Meta's file by Hugging Face's names."""
    result = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        prefix, own = (f"encoder.layer.{found[1]}.", found[2]) if found else ("", name)
        if own in ("attn.qkv.weight", "attn.qkv.bias"):
            kind = own.rpartition(".")[2]
            for part, values in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
                result[f"{prefix}attention.attention.{part}.{kind}"] = values
            continue
        stem, dot, kind = own.rpartition(".")
        own = _META_NAMES.get(own) or _META_NAMES.get(stem, stem) + dot + kind
        result[prefix + own] = tensor
    return result


def _load(tensors: Mapping[str, np.ndarray], interpolation: str) -> dict[str, Any]:
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

    gated = "encoder.layer.0.mlp.weights_in.weight" in tensors  # the giant one
    kernel = get("embeddings.patch_embeddings.projection.weight")
    positions = get("embeddings.position_embeddings")
    params = {
        "patch": kernel.transpose(2, 3, 1, 0),
        "patch_bias": get("embeddings.patch_embeddings.projection.bias"),
        "class_token": get("embeddings.cls_token"),
        "positions": _positions(positions, kernel.shape[-1], interpolation),
        "norm": (get("layernorm.weight"), get("layernorm.bias")),
        "layers": {
            "norm1": (stacked("norm1.weight"), stacked("norm1.bias")),
            "query": linear("attention.attention.query"),
            "key": linear("attention.attention.key"),
            "value": linear("attention.attention.value"),
            "output": linear("attention.output.dense"),
            "scale1": stacked("layer_scale1.lambda1"),
            "norm2": (stacked("norm2.weight"), stacked("norm2.bias")),
            "inner": linear("mlp.weights_in" if gated else "mlp.fc1"),
            "outer": linear("mlp.weights_out" if gated else "mlp.fc2"),
            "scale2": stacked("layer_scale2.lambda1"),
        },
    }
    if "embeddings.register_tokens" in tensors:
        params["registers"] = get("embeddings.register_tokens")
    shape = (1, SIZE, SIZE, 3)
    jax.eval_shape(class_token, params, jax.ShapeDtypeStruct(shape, jnp.float32))
    return params


def _positions(stored: jax.Array, patch: int, interpolation: str) -> jax.Array:
    """Position embeddings [1, 1 + patches, width] for 224 x 224, from those of pretraining."""
    side, wanted = round((stored.shape[1] - 1) ** 0.5), SIZE // patch
    if side == wanted:
        return stored
    if interpolation == "antialiased":
        weights = jnp.asarray(resize.matrix("clean", side, wanted), jnp.float32)
    else:
        offset = _META_OFFSET if interpolation == "offset" else 0.0
        weights = jnp.asarray(resize.torch_bicubic(side, wanted, offset), jnp.float32)
    grid = stored[0, 1:].reshape(side, side, -1)
    grid = jnp.einsum("ab,cd,bde->ace", weights, weights, grid, precision=vit.PRECISION)
    return jnp.concatenate([stored[:, :1], grid.reshape(1, wanted * wanted, -1)], axis=1)


def class_token(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Normalised images [B, 224, 224, 3] -> class tokens after the last norm, [B, width]."""
    x = vit.patches(x, params["patch"]) + params["patch_bias"]
    first = jnp.broadcast_to(params["class_token"], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + params["positions"]
    if "registers" in params:
        registers = jnp.broadcast_to(params["registers"], (len(x), *params["registers"].shape[1:]))
        x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
    x, _ = jax.lax.scan(lambda x, layer: (_layer(layer, x), None), x, params["layers"])
    return _norm(x[:, 0], params["norm"])


def _layer(layer: Mapping[str, Any], x: jax.Array) -> jax.Array:
    x = x + vit.attention(layer, _norm(x, layer["norm1"])) * layer["scale1"]
    hidden = vit.linear(_norm(x, layer["norm2"]), layer["inner"])
    if hidden.shape[-1] == 2 * layer["outer"][0].shape[-2]:  # SwiGLU
        gate, value = jnp.split(hidden, 2, axis=-1)
        hidden = jax.nn.silu(gate) * value
    else:
        hidden = jax.nn.gelu(hidden, approximate=False)
    return x + vit.linear(hidden, layer["outer"]) * layer["scale2"]


def _norm(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    return vit.norm(x, weights, _EPSILON)
