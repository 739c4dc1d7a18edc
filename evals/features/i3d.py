"""I3D, the network of the Fréchet video distance (Unterthiner et al., arXiv 1812.01717).

Carreira and Zisserman's inflated Inception (arXiv 1705.07750), trained on Kinetics-400. Weights are
the state dict of its best-known PyTorch port, `rgb_imagenet.pt` of pytorch-i3d, with its names
(`Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b1a.bn.running_mean`, `logits.conv3d.bias`, ...), as .pt
or as safetensors. The features are the 400 logits, averaged over time. The FVD that is usually
reported takes clips of 16 frames or more, resized to 224 x 224.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evals.features import resize
from evals.features.base import ClipExtractor, WeightsError
from evals.features.weights import Weights

SIZE = 224
MIN_FRAMES = 9  # with fewer, no time step remains to average over
_EPSILON = 1e-3
_PRECISION = jax.lax.Precision.HIGHEST

Params = Mapping[str, tuple[jax.Array, jax.Array]]  # name -> (kernel [T, H, W, I, O], bias [O])

_STEM = {  # name -> (kernel, stride)
    "Conv3d_1a_7x7": (7, 2),
    "Conv3d_2b_1x1": (1, 1),
    "Conv3d_2c_3x3": (3, 1),
}
_BLOCKS = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
_BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")


def extractor(weights: Weights) -> ClipExtractor:
    """I3D with the given weights. Raises WeightsError for those of another network."""
    params = load(weights.tensors)
    run = jax.jit(logits)

    def apply(clips: np.ndarray) -> np.ndarray:
        if clips.shape[1] < MIN_FRAMES:
            raise WeightsError(
                f"I3D needs clips of at least {MIN_FRAMES} frames, found {clips.shape[1]}"
            )
        frames = [
            [resize.resized(frame, (SIZE, SIZE), "torch") for frame in clip] for clip in clips
        ]
        scaled = np.asarray(frames, np.float32) / np.float32(127.5) - 1
        return np.concatenate([np.asarray(run(params, clip[None])) for clip in scaled])

    settings = {"weights": weights.name, "weights_sha256": weights.sha256, "size": SIZE}
    return ClipExtractor("i3d", settings, apply)


def load(tensors: Mapping[str, np.ndarray]) -> Params:
    """Convolutions with their batch norms folded in.

    Raises WeightsError for tensors that are missing or misshapen.
    """
    mixed = [f"Mixed_{block}.{branch}" for block in _BLOCKS for branch in _BRANCHES]
    try:
        params = {name: _folded(tensors, name) for name in [*_STEM, *mixed]}
        head = jnp.asarray(tensors["logits.conv3d.weight"], jnp.float32)
        params["logits"] = (
            head.transpose(2, 3, 4, 1, 0),
            jnp.asarray(tensors["logits.conv3d.bias"], jnp.float32),
        )
    except KeyError as missing:
        raise WeightsError(
            f"the weights have no {missing.args[0]}; expected the state dict of pytorch-i3d "
            "(rgb_imagenet.pt), or the same tensors as safetensors"
        ) from None
    return params


def _folded(tensors: Mapping[str, np.ndarray], name: str) -> tuple[jax.Array, jax.Array]:
    kernel, norm = tensors[f"{name}.conv3d.weight"], f"{name}.bn."
    if kernel.ndim != 5:
        raise WeightsError(f"{name}.conv3d.weight has {kernel.ndim} dimensions, expected 5")
    variance = tensors[f"{norm}running_var"].astype(np.float64)
    scale = tensors[f"{norm}weight"] / np.sqrt(variance + _EPSILON)
    bias = tensors[f"{norm}bias"] - tensors[f"{norm}running_mean"] * scale
    folded = (kernel * scale[:, None, None, None, None]).transpose(2, 3, 4, 1, 0)
    return jnp.asarray(folded, jnp.float32), jnp.asarray(bias, jnp.float32)


def logits(params: Params, clips_BxTxHxWxC: jax.Array) -> jax.Array:
    """Clips of values from -1 to 1, float32 [B, T, 224, 224, 3] -> float32 [B, 400]."""
    x = _unit(params, "Conv3d_1a_7x7", clips_BxTxHxWxC)
    x = _max_pool(x, (1, 3, 3), (1, 2, 2))
    x = _unit(params, "Conv3d_2c_3x3", _unit(params, "Conv3d_2b_1x1", x))
    x = _max_pool(x, (1, 3, 3), (1, 2, 2))
    for block in _BLOCKS:
        if block == "4b":
            x = _max_pool(x, (3, 3, 3), (2, 2, 2))
        if block == "5b":
            x = _max_pool(x, (2, 2, 2), (2, 2, 2))
        x = _mixed(params, f"Mixed_{block}", x)
    window = (1, 2, 7, 7, 1)
    x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1,) * 5, "VALID") / np.prod(window)
    kernel, bias = params["logits"]
    return jnp.mean(_convolve(x, kernel, 1) + bias, axis=(1, 2, 3))


def _unit(params: Params, name: str, x: jax.Array) -> jax.Array:
    kernel, bias = params[name]
    return jax.nn.relu(_convolve(x, kernel, _STEM.get(name, (1, 1))[1]) + bias)


def _mixed(params: Params, name: str, x: jax.Array) -> jax.Array:
    def unit(branch: str, x: jax.Array) -> jax.Array:
        return _unit(params, f"{name}.{branch}", x)

    pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
    branches = [
        unit("b0", x),
        unit("b1b", unit("b1a", x)),
        unit("b2b", unit("b2a", x)),
        unit("b3b", pooled),
    ]
    return jnp.concatenate(branches, axis=-1)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    layout: Any = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 3, "SAME", dimension_numbers=layout, precision=_PRECISION
    )


def _max_pool(x: jax.Array, window: tuple[int, ...], stride: tuple[int, ...]) -> jax.Array:
    # The original pads with 0, which after a ReLU never exceeds the maximum.
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), "SAME")
