"""Feature functions for the perceptual loss, with weights from a file that the user names.

`features` is a name here, or MODULE:FUNCTION: called with the tensors of the weights file by name
(a dict of NumPy arrays; {} without a file), it returns a function of pixels, see `losses.Features`.
Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from data_pipelines.utils import npz
from data_pipelines.utils.plugins import load_object
from jpeglm_jax.huggingface import pth, safetensors
from jpeglm_jax.tokenizer.losses import Features

Tensors = Mapping[str, np.ndarray]

_MIN_SIDE = 64  # pixels; smaller images are enlarged, or the last maps would be single pixels
_BGR_MEAN = (104.0, 117.0, 123.0)  # of SqueezeNet's Caffe release
_RGB_MEAN, _RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's
# torchvision numbers the layers; pooling and activations have a number too.
_TORCHVISION = {2: 3, 3: 4, 4: 5, 5: 7, 6: 8, 7: 9, 8: 10, 9: 12}
_POOL_BEFORE = (2, 5, 9)
_RETURNED = (3, 4, 6, 8)  # and the first convolution


def load(features: str, weights: str) -> Features:
    """The feature function that a configuration names.

    Args:
      features: "squeezenet", or MODULE:FUNCTION.
      weights: a file: .safetensors, .npz, or .pth, whose pickle is not executed; "": none.

    Raises:
      ValueError: the name cannot be imported, or the file is missing, damaged, or of another
        network.
    """
    make = load_object(features, "loss.perceptual.features") if ":" in features else None
    if make is None:
        if features not in FEATURES:
            known = ", ".join(f'"{name}"' for name in FEATURES)
            raise ValueError(
                f'loss.perceptual.features is {features!r}; expected {known} or "MODULE:FUNCTION"'
            )
        if not weights:
            raise ValueError(
                f"loss.perceptual.weights is empty; expected the file with the weights of "
                f"{features}, or set loss.perceptual.weight to 0"
            )
        make = FEATURES[features]
    try:
        return make(read(weights) if weights else {})
    except KeyError as error:
        raise ValueError(
            f"loss.perceptual.weights: {weights} has no tensor {error}; expected the weights of "
            f"{features}"
        ) from error


def read(where: epath.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a weights file, by name. Raises ValueError if it cannot be read."""
    path = epath.Path(where)
    if not path.is_file():
        raise ValueError(f"loss.perceptual.weights: there is no file {path}")
    if path.suffix == ".npz":
        return npz.load(path)
    with path.open("rb") as file:
        start = file.read(4)
    try:
        if start == b"PK\x03\x04" or start[:1] == b"\x80":
            return pth.read(path.read_bytes())
        header = safetensors.read_header(path)
        return {name: tensor.read() for name, tensor in header.items()}
    except ValueError as error:
        raise ValueError(
            f"loss.perceptual.weights: {path} is no weights file ({error}); expected safetensors, "
            ".npz or .pth"
        ) from error


def squeezenet(tensors: Tensors) -> Features:
    """SqueezeNet 1.0 (Iandola et al. 2016): the first convolution and fire 3, 4, 6 and 8.

    Args:
      tensors: with the names of the Caffe release ("fire2/squeeze1x1.weight"; takes BGR), or of
        torchvision ("features.3.squeeze.weight"; takes RGB). Convolutions are [out, in, H, W].
    """
    caffe = "conv1.weight" in tensors

    def layer(name: str) -> tuple[jax.Array, jax.Array]:
        kernel = jnp.asarray(tensors[f"{name}.weight"], jnp.float32).transpose(2, 3, 1, 0)
        return kernel, jnp.asarray(tensors[f"{name}.bias"], jnp.float32)

    def part(fire: int, name: str) -> tuple[jax.Array, jax.Array]:
        if caffe:
            return layer(f"fire{fire}/{name}")
        return layer(f"features.{_TORCHVISION[fire]}.{name.replace('squeeze1x1', 'squeeze')}")

    first = layer("conv1" if caffe else "features.0")
    names = ("squeeze1x1", "expand1x1", "expand3x3")
    fires = {fire: [part(fire, name) for name in names] for fire in range(2, max(_RETURNED) + 1)}

    def features(pixels: jax.Array) -> list[jax.Array]:
        x = _enlarged(jnp.broadcast_to(pixels, (*pixels.shape[:3], 3)))
        if caffe:
            x = (x[..., ::-1] + 1) * 127.5 - jnp.asarray(_BGR_MEAN)
        else:
            x = ((x + 1) / 2 - jnp.asarray(_RGB_MEAN)) / jnp.asarray(_RGB_STD)
        x = _conv(x, first, stride=2)
        found = [x]
        for fire, (squeeze, expand1, expand3) in fires.items():
            if fire in _POOL_BEFORE:
                window = (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *window)
            x = _conv(x, squeeze)
            x = jnp.concatenate([_conv(x, expand1), _conv(x, expand3)], axis=-1)
            if fire in _RETURNED:
                found.append(x)
        return found

    return features


def _conv(x: jax.Array, layer: tuple[jax.Array, jax.Array], stride: int = 1) -> jax.Array:
    kernel, bias = layer
    padding = "VALID" if stride > 1 else "SAME"
    dimensions = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=dimensions
    )
    return jax.nn.relu(found + bias)


def _enlarged(x: jax.Array) -> jax.Array:
    factor = -(-_MIN_SIDE // min(x.shape[1:3]))
    if factor == 1:
        return x
    b, height, width, c = x.shape
    return jax.image.resize(x, (b, factor * height, factor * width, c), "bilinear")


FEATURES = {"squeezenet": squeezenet}
