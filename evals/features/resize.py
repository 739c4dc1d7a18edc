"""Resizes images to a network's input size, with the rules of the published FID tools.

Resizing is the main reason why two implementations of FID disagree. It is linear and separable:
each rule is a pair of dense matrices, built here in float64:

    preset   rule                                                           as in
    tf1      bilinear, source = target * in / out: no half pixel, no        TensorFlow 1, ADM, EDM,
             antialiasing                                                   torch-fidelity
    torch    bilinear, half pixel centres, no antialiasing                  pytorch-fid
    clean    Pillow's bicubic, antialiased; clipped to 0-255, not rounded   clean-fid
    pillow   the same, in 8 bits: rounded after each axis                   dgm-eval, CMMD

The last is not linear, and Pillow itself computes it. pytorch-fid also normalises differently: see
`NORMALISATION`. The extractors of this package call `resized`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from PIL import Image

Preset = Literal["tf1", "torch", "clean", "pillow"]
PRESETS: tuple[str, ...] = get_args(Preset)

STRIP_SIZE = 2**22  # values of an image in memory as float64 at once

# (centre, scale): the input of the FID network is (pixel - centre) / scale. The original uses 128;
# pytorch-fid maps 0-255 to -1..1 exactly.
NORMALISATION: dict[str, tuple[float, float]] = {
    "tf1": (128.0, 128.0),
    "torch": (127.5, 127.5),
    "clean": (128.0, 128.0),
    "pillow": (128.0, 128.0),
}


def resized(image: np.ndarray, size: tuple[int, int], preset: Preset) -> np.ndarray:
    """Scales an image to a size; the aspect ratio is not kept.

    Args:
      image: [height, width, channels], values 0-255; uint8 with 3 channels for "pillow".
      size: (height, width) of the result.
      preset: one of `PRESETS`.

    Returns:
      float32 [*size, channels], 0-255, not rounded.
    """
    if preset == "pillow":
        scaled = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(scaled, np.float32)
    rows = matrix(preset, image.shape[0], size[0])
    columns = matrix(preset, image.shape[1], size[1])
    height, width, channels = image.shape
    # In float64, because float32 sums differ between BLAS libraries by more than 1e-5. In strips,
    # because a large photo would take gigabytes.
    tall = np.zeros((size[0], width * channels))
    step = max(STRIP_SIZE // (width * channels), 1)
    for top in range(0, height, step):
        strip = image[top : top + step].reshape(-1, width * channels)
        tall += rows[:, top : top + step] @ strip.astype(np.float64)
    planes = tall.reshape(size[0], width, channels).swapaxes(1, 2)
    result = (planes.reshape(-1, width) @ columns.T).reshape(size[0], channels, size[1])
    result = result.swapaxes(1, 2)
    if preset == "clean":
        result = np.clip(result, 0, 255)  # a bicubic filter overshoots
    return result.astype(np.float32)


@functools.lru_cache(maxsize=256)
def matrix(preset: Preset, inputs: int, outputs: int) -> np.ndarray:
    """The weights of each input for each output along one axis, float64 [outputs, inputs].

    Rows sum to 1. Raises ValueError for an unknown preset, one without a matrix, or sizes below 1.
    """
    if preset not in _RULES:
        raise ValueError(f"found resize preset {preset!r}, expected one of {', '.join(_RULES)}")
    if inputs < 1 or outputs < 1:
        raise ValueError(f"found {inputs} pixels to resize to {outputs}; expected 1 or more")
    result = _RULES[preset](inputs, outputs)
    result.flags.writeable = False  # the cache shares it between callers
    return result


def _bilinear(source: np.ndarray, inputs: int) -> np.ndarray:
    """Interpolates between the two inputs around each source position; clamps at the edge."""
    low = np.minimum(source.astype(np.int64), inputs - 1)
    high = np.minimum(low + 1, inputs - 1)
    part = source.astype(np.float64) - low
    result = np.zeros((len(source), inputs))
    np.add.at(result, (np.arange(len(source)), low), 1 - part)
    np.add.at(result, (np.arange(len(source)), high), part)
    return result


def _tf1(inputs: int, outputs: int) -> np.ndarray:
    # The original computes positions in float32; float64 would differ by up to 3e-5 of a pixel.
    scale = np.float32(inputs / outputs)
    return _bilinear(np.arange(outputs, dtype=np.float32) * scale, inputs)


def _torch(inputs: int, outputs: int) -> np.ndarray:
    # A float32 scale and one rounding at the end, like a fused multiply-add.
    scale = np.float64(np.float32(inputs / outputs))
    positions = ((np.arange(outputs) + 0.5) * scale - 0.5).astype(np.float32)
    return _bilinear(np.maximum(positions, 0), inputs)


def _clean(inputs: int, outputs: int) -> np.ndarray:
    """Pillow's Resample.c: a cubic of a = -0.5, as wide as the scale when reducing."""
    scale = inputs / outputs
    width = max(scale, 1.0)
    centres = (np.arange(outputs) + 0.5) * scale
    first = np.maximum((centres - 2 * width + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + 2 * width + 0.5).astype(np.int64), inputs)
    pixels = np.arange(inputs)
    weights = _cubic((pixels + 0.5 - centres[:, None]) / width)
    weights *= (pixels >= first[:, None]) & (pixels < last[:, None])
    return weights / weights.sum(1, keepdims=True)


def torch_bicubic(inputs: int, outputs: int, offset: float = 0.0) -> np.ndarray:
    """PyTorch's bicubic interpolation, float64 [outputs, inputs]: a = -0.75, not antialiased.

    With an offset it is that for a `scale_factor` of (outputs + offset) / inputs. (PyTorch's
    antialiased form is the matrix of the preset "clean".)
    """
    centres = (np.arange(outputs) + 0.5) * (inputs / (outputs + offset)) - 0.5
    result = np.zeros((outputs, inputs))
    for step in range(-1, 3):
        source = np.floor(centres).astype(np.int64) + step
        np.add.at(
            result,
            (np.arange(outputs), np.clip(source, 0, inputs - 1)),
            _cubic(source - centres, -0.75),
        )
    return result


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys' cubic convolution (IEEE Trans. ASSP 29, 1981)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_RULES: dict[str, Callable[[int, int], np.ndarray]] = {
    "tf1": _tf1,
    "torch": _torch,
    "clean": _clean,
}
