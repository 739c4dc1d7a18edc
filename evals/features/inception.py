"""The FID network, TensorFlow's inception-2015-12-05, in Flax NNX.

It differs from torchvision's Inception v3: batch norm has epsilon 1e-3, there are 1,008 classes,
average pools exclude the padding, Mixed_7c has a max pool, and the inner width of Mixed_6b-6e grows
from 128 to 192. Names of layers are those of the public PyTorch port, whose weights are read
directly (pt_inception-2015-12-05-6726825d.pth); batch norm is folded into the convolutions.
`extractors.fid_inception` makes an `Extractor` of it.

Features by name, all float32 [B, d]:

    64, 192, 768, 2048   means over the image after the two first pools, Mixed_6e and Mixed_7c
    logits               1,008 class scores without the final bias, for the Inception score
    spatial              2,023: 7 channels of Mixed_6d's 1x1 branch at 17 x 17 positions, for sFID
                         (Nash et al., arXiv 2103.03841; as in ADM's evaluator)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evals.features.base import WeightsError

SIZE = 299
BATCH_NORM_EPSILON = 1e-3
DIMENSIONS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits": 1008, "spatial": 2023}
Pool = Callable[[jax.Array], jax.Array]
_SPATIAL_CHANNELS = 7
_NORM = ("bias", "running_mean", "running_var", "weight")

# Files known to hold the original weights, by SHA-256.
KNOWN_WEIGHTS = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": (
        "pt_inception-2015-12-05-6726825d.pth (pytorch-fid, torch-fidelity)"
    ),
}

# float32: the default on accelerators multiplies in fewer bits, which changes FID.
_PRECISION = jax.lax.Precision.HIGHEST


def _joined(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def _mean(x: jax.Array) -> jax.Array:
    return x.mean(axis=(1, 2))


def _max_pool(x: jax.Array, stride: int = 2) -> jax.Array:
    padding = "VALID" if stride == 2 else "SAME"
    return nnx.max_pool(x, (3, 3), strides=(stride, stride), padding=padding)


def _mean_pool(x: jax.Array) -> jax.Array:
    """3x3 average, of the positions inside the image."""
    return nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


class Conv(nnx.Module):
    """Convolution with batch norm folded in, and ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, int] = (1, 1),
        *,
        stride: int = 1,
        padding: str = "SAME",
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inputs, outputs, size, strides=stride, padding=padding, precision=_PRECISION, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.conv(x))


class InceptionA(nnx.Module):
    """35 x 35: 1x1, 5x5, two 3x3, pooled."""

    def __init__(self, inputs: int, pooled: int, *, rngs: nnx.Rngs):
        conv = functools.partial(Conv, rngs=rngs)
        self.branch1x1 = conv(inputs, 64)
        self.branch5x5_1 = conv(inputs, 48)
        self.branch5x5_2 = conv(48, 64, (5, 5))
        self.branch3x3dbl_1 = conv(inputs, 64)
        self.branch3x3dbl_2 = conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = conv(96, 96, (3, 3))
        self.branch_pool = conv(inputs, pooled)

    def __call__(self, x: jax.Array) -> jax.Array:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return _joined(self.branch1x1(x), five, three, self.branch_pool(_mean_pool(x)))


class InceptionB(nnx.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, *, rngs: nnx.Rngs):
        conv = functools.partial(Conv, rngs=rngs)
        self.branch3x3 = conv(288, 384, (3, 3), stride=2, padding="VALID")
        self.branch3x3dbl_1 = conv(288, 64)
        self.branch3x3dbl_2 = conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = conv(96, 96, (3, 3), stride=2, padding="VALID")

    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return _joined(self.branch3x3(x), three, _max_pool(x))


class InceptionC(nnx.Module):
    """17 x 17: 1x1, 7x7 as 1x7 and 7x1, the same twice, pooled."""

    def __init__(self, inner: int, *, rngs: nnx.Rngs):
        conv = functools.partial(Conv, rngs=rngs)
        wide, tall = (1, 7), (7, 1)
        self.branch1x1 = conv(768, 192)
        self.branch7x7_1 = conv(768, inner)
        self.branch7x7_2 = conv(inner, inner, wide)
        self.branch7x7_3 = conv(inner, 192, tall)
        self.branch7x7dbl_1 = conv(768, inner)
        self.branch7x7dbl_2 = conv(inner, inner, tall)
        self.branch7x7dbl_3 = conv(inner, inner, wide)
        self.branch7x7dbl_4 = conv(inner, inner, tall)
        self.branch7x7dbl_5 = conv(inner, 192, wide)
        self.branch_pool = conv(768, 192)

    def __call__(self, x: jax.Array) -> jax.Array:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return _joined(self.branch1x1(x), once, twice, self.branch_pool(_mean_pool(x)))


class InceptionD(nnx.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, *, rngs: nnx.Rngs):
        conv = functools.partial(Conv, rngs=rngs)
        self.branch3x3_1 = conv(768, 192)
        self.branch3x3_2 = conv(192, 320, (3, 3), stride=2, padding="VALID")
        self.branch7x7x3_1 = conv(768, 192)
        self.branch7x7x3_2 = conv(192, 192, (1, 7))
        self.branch7x7x3_3 = conv(192, 192, (7, 1))
        self.branch7x7x3_4 = conv(192, 192, (3, 3), stride=2, padding="VALID")

    def __call__(self, x: jax.Array) -> jax.Array:
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        return _joined(self.branch3x3_2(self.branch3x3_1(x)), seven, _max_pool(x))


class InceptionE(nnx.Module):
    """8 x 8: 1x1, 3x3 and two 3x3 that end in parallel 1x3 and 3x1, pooled."""

    def __init__(self, inputs: int, pool: Pool, *, rngs: nnx.Rngs):
        conv = functools.partial(Conv, rngs=rngs)
        self._pool = pool
        self.branch1x1 = conv(inputs, 320)
        self.branch3x3_1 = conv(inputs, 384)
        self.branch3x3_2a = conv(384, 384, (1, 3))
        self.branch3x3_2b = conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = conv(inputs, 448)
        self.branch3x3dbl_2 = conv(448, 384, (3, 3))
        self.branch3x3dbl_3a = conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = conv(384, 384, (3, 1))
        self.branch_pool = conv(inputs, 192)

    def __call__(self, x: jax.Array) -> jax.Array:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return _joined(
            self.branch1x1(x),
            self.branch3x3_2a(once),
            self.branch3x3_2b(once),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
            self.branch_pool(self._pool(x)),
        )


# The layers, in order.
_LAYERS: dict[str, Callable[..., nnx.Module]] = {
    "Conv2d_1a_3x3": functools.partial(Conv, 3, 32, (3, 3), stride=2, padding="VALID"),
    "Conv2d_2a_3x3": functools.partial(Conv, 32, 32, (3, 3), padding="VALID"),
    "Conv2d_2b_3x3": functools.partial(Conv, 32, 64, (3, 3)),
    "Conv2d_3b_1x1": functools.partial(Conv, 64, 80),
    "Conv2d_4a_3x3": functools.partial(Conv, 80, 192, (3, 3), padding="VALID"),
    "Mixed_5b": functools.partial(InceptionA, 192, 32),
    "Mixed_5c": functools.partial(InceptionA, 256, 64),
    "Mixed_5d": functools.partial(InceptionA, 288, 64),
    "Mixed_6a": InceptionB,
    "Mixed_6b": functools.partial(InceptionC, 128),
    "Mixed_6c": functools.partial(InceptionC, 160),
    "Mixed_6d": functools.partial(InceptionC, 160),
    "Mixed_6e": functools.partial(InceptionC, 192),
    "Mixed_7a": InceptionD,
    "Mixed_7b": functools.partial(InceptionE, 1280, _mean_pool),
    "Mixed_7c": functools.partial(InceptionE, 2048, functools.partial(_max_pool, stride=1)),
    "fc": functools.partial(nnx.Linear, 2048, 1008, use_bias=False, precision=_PRECISION),
}
# The layer after which each feature is read.
_FEATURE_LAYERS = {
    "64": "Conv2d_2b_3x3",
    "192": "Conv2d_4a_3x3",
    "768": "Mixed_6e",
    "2048": "Mixed_7c",
    "logits": "fc",
    "spatial": "Mixed_6d",
}


class Inception(nnx.Module):
    """The layers that the wanted features need.

    Args:
      wanted: names of features, see the module docstring.
      rngs: for random weights, where none are loaded.

    Raises ValueError for unknown names.
    """

    def __init__(self, wanted: Sequence[str], rngs: nnx.Rngs):
        self.wanted = tuple(wanted)
        for name in _layers_for(wanted):
            setattr(self, name, _LAYERS[name](rngs=rngs))

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Images float32 [B, 299, 299, 3], from -1 to 1 -> the wanted features, [B, d] each."""
        after = {}
        for name in _layers_for(self.wanted):
            x = getattr(self, name)(_mean(x) if name == "fc" else x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = _max_pool(x)
            after[name] = x
        return {name: _feature(name, after[_FEATURE_LAYERS[name]]) for name in self.wanted}


def _feature(name: str, x: jax.Array) -> jax.Array:
    if name == "logits":
        return x
    if name == "spatial":
        return x[..., :_SPATIAL_CHANNELS].reshape(len(x), -1)
    return _mean(x)


def _layers_for(wanted: Sequence[str]) -> list[str]:
    """All layers up to the last that the wanted features need."""
    unknown = [name for name in wanted if name not in _FEATURE_LAYERS]
    if unknown or not wanted:
        known = ", ".join(DIMENSIONS)
        raise ValueError(f"found features {unknown or wanted}, expected some of {known}")
    names = list(_LAYERS)
    return names[: 1 + max(names.index(_FEATURE_LAYERS[name]) for name in wanted)]


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the PyTorch port that are read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(_abstract(["logits"])[1]):
        name = ".".join(key.key for key in path[:-1])
        if name == "fc":
            shapes["fc.weight"] = leaf.shape[::-1]
        elif path[-1].key == "kernel":
            height, width, inputs, outputs = leaf.shape
            shapes[f"{name}.weight"] = (outputs, inputs, height, width)
        else:
            norm = name.removesuffix("conv") + "bn."
            shapes |= {norm + part: leaf.shape for part in _NORM}
    return shapes


def required(wanted: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the PyTorch port's tensors that the wanted features need."""
    layers = _layers_for(wanted)
    return {name: shape for name, shape in _shapes().items() if name.split(".")[0] in layers}


def load(tensors: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Inception:
    """The network with the weights of the PyTorch port, by their names there.

    A file with the first layers only is enough for the features of these layers.

    Raises:
      WeightsError: tensors are missing, or have other shapes.
    """
    wrong = []
    for name, shape in required(wanted).items():
        found = tensors[name].shape if name in tensors else None
        if found is None:
            wrong.append(f"{name} is missing")
        elif found != shape:
            wrong.append(f"{name} has shape {found}, expected {shape}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"the weights lack tensors of the features {', '.join(wanted)}: {'; '.join(wrong[:3])}"
            f"{more}. They cover {', '.join(available(tensors)) or 'none'}; expected those of "
            "the FID network, such as pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
        )
    graph, shapes = _abstract(wanted)
    return nnx.merge(
        graph, jax.tree_util.tree_map_with_path(lambda path, _: _folded(tensors, path), shapes)
    )


def available(tensors: Container[str]) -> list[str]:
    """Names of the features whose tensors are all in a file, which may be partial."""
    return [name for name in DIMENSIONS if all(needed in tensors for needed in required([name]))]


def _abstract(wanted: Sequence[str]) -> tuple[Any, Any]:
    """The network's graph and the shapes of its parameters, without allocating any."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Inception(wanted, nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


def _folded(tensors: Mapping[str, np.ndarray], path: Any) -> jax.Array:
    """A parameter, float32, with the batch norm after a convolution folded in.

    Computed in float64: y = (w * x - mean) / sqrt(variance + epsilon) * scale + shift.
    """
    name = ".".join(key.key for key in path[:-1])
    if name == "fc":
        return jnp.asarray(tensors["fc.weight"], jnp.float32).T
    norm = name.removesuffix("conv") + "bn."
    shift, mean, variance, scale = (np.asarray(tensors[norm + n], np.float64) for n in _NORM)
    scale = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
    if path[-1].key == "bias":
        return jnp.asarray(shift - mean * scale, jnp.float32)
    kernel = np.asarray(tensors[f"{name}.weight"], np.float64)
    return jnp.asarray(kernel.transpose(2, 3, 1, 0) * scale, jnp.float32)
