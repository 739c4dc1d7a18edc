"""The image and text towers of CLIP (Radford et al., arXiv 2103.00020).

Weights are model.safetensors of OpenAI's models on Hugging Face; CMMD (Jayasumana et al., arXiv
2401.09603) is defined with openai/clip-vit-large-patch14-336. `extractors.make` gives the image
tower as an extractor; `evals.clip_score` uses both.

Images are prepared as in CMMD: the centre square, resized with Pillow's bicubic filter in 8 bits.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from evals.features import resize, vit
from evals.features.base import Extractor, WeightsError
from evals.features.features import on_devices
from evals.features.weights import Weights

_EPSILON = 1e-5
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_EXPECTED = "expected model.safetensors of an OpenAI CLIP model with patches from Hugging Face"
_CONFIG = "config.json"
_ACTIVATION = "quick_gelu"
# (width, layers) of the published image towers.
_SIZES = {(768, 12): "ViT-B", (1024, 24): "ViT-L"}


def extractor(weights: Weights, preset: resize.Preset = "pillow") -> Extractor:
    """The image tower: the feature is the projected embedding, not normalised.

    Raises WeightsError for weights of another network.
    """
    params = load(weights.tensors, "image")
    size = image_size(params)

    def prepare(image: np.ndarray) -> np.ndarray:
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = np.ascontiguousarray(image[top : top + side, left : left + side])
        pixels = resize.resized(square, (size, size), preset)
        return (pixels / np.float32(255) - _MEAN) / _DEVIATION

    settings = {
        "weights": weights.name,
        "weights_sha256": weights.sha256,
        "architecture": architecture(params),
        "size": size,
        "crop": "centre square",
        "resize": preset,
    }
    apply = on_devices(lambda params, x: {"image_embedding": image_embedding(params, x)}, params)
    return Extractor("clip", "image_embedding", settings, prepare, apply)


def require_openais(path: epath.PathLike) -> None:
    """Raises WeightsError if the config.json next to a weights file is of another kind of CLIP.

    Other models have the same tensors but another activation or size of heads. Without a
    config.json the weights are taken for OpenAI's.
    """
    path = epath.Path(path).parent / _CONFIG
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text())
        towers = [config.get(name) or {} for name in ("vision_config", "text_config")]
        found = {tower.get("hidden_act", _ACTIVATION) for tower in towers}
        # Absent values are those of transformers' defaults, which are ViT-B/32's: heads of 64.
        heads = {
            tower["hidden_size"] // tower["num_attention_heads"]
            for tower in towers
            if {"hidden_size", "num_attention_heads"} <= tower.keys()
        }
    except (ValueError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise WeightsError(f"{path} is not a configuration of CLIP: {error}") from error
    if found != {_ACTIVATION} or not heads <= {vit.HEAD}:
        raise WeightsError(
            f"{path} states the activation {', '.join(sorted(found))} and heads of "
            f"{sorted(heads)} dimensions, expected {_ACTIVATION} and {vit.HEAD}: OpenAI's CLIP"
        )


def load(tensors: Mapping[str, np.ndarray], tower: str) -> dict[str, Any]:
    """Parameters of a tower, "image" or "text", with the layers stacked.

    Raises WeightsError for tensors that are missing or have other shapes than the rest.
    """
    try:
        params = _load_image(tensors) if tower == "image" else _load_text(tensors)
        if tower == "image":
            size = image_size(params)
            inputs = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
            jax.eval_shape(image_embedding, params, inputs)
        else:
            tokens = jax.ShapeDtypeStruct((1, context_length(params)), jnp.int32)
            jax.eval_shape(functools.partial(text_embedding, end=0), params, tokens)
    except KeyError as missing:
        raise WeightsError(f"the weights have no {missing.args[0]}; {_EXPECTED}") from None
    except (ValueError, TypeError) as error:
        raise WeightsError(f"the weights' shapes do not fit: {error}; {_EXPECTED}") from error
    return params


def _get(tensors: Mapping[str, np.ndarray], name: str) -> jax.Array:
    return jnp.asarray(tensors[name], jnp.float32)


def _pair(tensors: Mapping[str, np.ndarray], name: str) -> tuple[jax.Array, jax.Array]:
    return _get(tensors, f"{name}.weight"), _get(tensors, f"{name}.bias")


def _layers(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    pattern = re.compile(rf"{re.escape(prefix)}\.encoder\.layers\.(\d+)\.")
    depth = 1 + max(
        (int(found[1]) for name in tensors if (found := pattern.match(name))), default=0
    )

    def stacked(name: str) -> jax.Array:
        layers = [_get(tensors, f"{prefix}.encoder.layers.{n}.{name}") for n in range(depth)]
        return jnp.stack(layers)

    def linear(name: str) -> tuple[jax.Array, jax.Array]:
        return stacked(f"{name}.weight").swapaxes(1, 2), stacked(f"{name}.bias")

    return {
        "norm1": (stacked("layer_norm1.weight"), stacked("layer_norm1.bias")),
        "query": linear("self_attn.q_proj"),
        "key": linear("self_attn.k_proj"),
        "value": linear("self_attn.v_proj"),
        "output": linear("self_attn.out_proj"),
        "norm2": (stacked("layer_norm2.weight"), stacked("layer_norm2.bias")),
        "inner": linear("mlp.fc1"),
        "outer": linear("mlp.fc2"),
    }


def _load_image(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    prefix = "vision_model"
    kernel = _get(tensors, f"{prefix}.embeddings.patch_embedding.weight")
    return {
        "patch": kernel.transpose(2, 3, 1, 0),
        "class": _get(tensors, f"{prefix}.embeddings.class_embedding").reshape(1, 1, -1),
        "positions": _get(tensors, f"{prefix}.embeddings.position_embedding.weight"),
        "first_norm": _pair(tensors, f"{prefix}.pre_layrnorm"),  # spelled so in the files
        "last_norm": _pair(tensors, f"{prefix}.post_layernorm"),
        "projection": _get(tensors, "visual_projection.weight").T,
        "layers": _layers(tensors, prefix),
    }


def _load_text(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    prefix = "text_model"
    return {
        "tokens": _get(tensors, f"{prefix}.embeddings.token_embedding.weight"),
        "positions": _get(tensors, f"{prefix}.embeddings.position_embedding.weight"),
        "last_norm": _pair(tensors, f"{prefix}.final_layer_norm"),
        "projection": _get(tensors, "text_projection.weight").T,
        "layers": _layers(tensors, prefix),
    }


def image_size(params: Mapping[str, Any]) -> int:
    """Pixels of a side of the images that the tower takes."""
    side = round((len(params["positions"]) - 1) ** 0.5)
    return side * int(params["patch"].shape[0])


def context_length(params: Mapping[str, Any]) -> int:
    """Tokens that the text tower takes."""
    return len(params["positions"])


def architecture(params: Mapping[str, Any]) -> str:
    """The name of the image tower, such as "ViT-L/14-336"."""
    width, patch = params["patch"].shape[-1], params["patch"].shape[0]
    depth = len(params["layers"]["norm1"][0])
    return f"{_SIZES.get((width, depth), f'ViT {width} x {depth}')}/{patch}-{image_size(params)}"


def image_embedding(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Normalised images [B, size, size, 3] -> embeddings [B, d]."""
    x = vit.patches(x, params["patch"])
    first = jnp.broadcast_to(params["class"], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + params["positions"]
    x = _encoded(params, vit.norm(x, params["first_norm"], _EPSILON), causal=False)
    pooled = vit.norm(x[:, 0], params["last_norm"], _EPSILON)
    return jnp.matmul(pooled, params["projection"], precision=vit.PRECISION)


def text_embedding(params: Mapping[str, Any], tokens: jax.Array, end: int) -> jax.Array:
    """Token ids [B, context length] -> embeddings [B, d], read at the first `end` token."""
    x = _encoded(params, params["tokens"][tokens] + params["positions"], causal=True)
    x = vit.norm(x, params["last_norm"], _EPSILON)
    pooled = x[jnp.arange(len(x)), jnp.argmax(tokens == end, axis=1)]
    return jnp.matmul(pooled, params["projection"], precision=vit.PRECISION)


def _encoded(params: Mapping[str, Any], x: jax.Array, *, causal: bool) -> jax.Array:
    def layer(x: jax.Array, layer: Mapping[str, Any]) -> tuple[jax.Array, None]:
        normed = vit.norm(x, layer["norm1"], _EPSILON)
        x = x + vit.attention(layer, normed, causal=causal)
        hidden = vit.linear(vit.norm(x, layer["norm2"], _EPSILON), layer["inner"])
        hidden = hidden * jax.nn.sigmoid(1.702 * hidden)  # quick_gelu
        return x + vit.linear(hidden, layer["outer"]), None

    return jax.lax.scan(layer, x, params["layers"])[0]
