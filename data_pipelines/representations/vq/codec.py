"""Runs a trained tokenizer on JAX's devices, in batches: pixels -> codes -> pixels.

`representation.py` imports this module only to encode or decode, so that processes that do neither
start without JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.representations.vq import network, weights
from data_pipelines.representations.vq.config import TokenizerConfig

# Images of one call of the device. All calls have the same number, padded if there are fewer, so
# that the codes of an image do not depend on what is encoded with it.
_CHUNK = {"cpu": 8}
_ACCELERATOR_CHUNK = 128


class Codec:
    """A trained tokenizer on the devices of this process; it can be used by several threads.

    Args:
      config: the tokenizer's shape.
      tensors: its weights, see `network.flatten`.

    Raises:
      TokenizerError: the weights are not those of this shape.
    """

    def __init__(self, config: TokenizerConfig, tensors: dict[str, np.ndarray]):
        self.config = config
        self._tokenizer = network.Tokenizer(config)
        params = network.unflatten(tensors)
        _check_shapes(self._tokenizer, params)
        self._devices = jax.local_devices()
        self._chunk = _CHUNK.get(self._devices[0].platform, _ACCELERATOR_CHUNK)
        self._params = params
        self._params_on: dict[int, Any] = {}  # by the device's number, from its first use
        self._encode = jax.jit(self._codes_of)
        self._decode = jax.jit(self._pixels_of)

    @property
    def device_kind(self) -> str:
        """The kind of device that it runs on, as JAX names it."""
        return self._devices[0].device_kind

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, size, size, C] -> codes in raster order, int32 [B, num_positions]."""
        return self._in_chunks(self._encode, pixels).reshape(len(pixels), -1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes, integer [B, num_positions] -> uint8 [B, size, size, C].

        A code of -1 stands for none; the decoder gets a vector of zeros in its place.
        """
        grid = self.config.grid
        return self._in_chunks(self._decode, codes.astype(np.int32).reshape(-1, grid, grid))

    def _in_chunks(self, run: Callable[..., Any], inputs: np.ndarray) -> np.ndarray:
        outputs = []
        for number, first in enumerate(range(0, len(inputs), self._chunk)):
            part = inputs[first : first + self._chunk]
            padding = [(0, self._chunk - len(part)), *[(0, 0)] * (part.ndim - 1)]
            which = number % len(self._devices)
            there = jax.device_put(np.pad(part, padding), self._devices[which])
            if which not in self._params_on:
                self._params_on[which] = jax.device_put(self._params, self._devices[which])
            outputs.append(run(self._params_on[which], there))  # devices work at the same time
        return np.concatenate([np.asarray(each) for each in outputs])[: len(inputs)]

    def _codes_of(self, params: Any, pixels: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            latents = self._tokenizer.latents(params, network.to_unit(pixels))
            return self._tokenizer.codes(params, latents)

    def _pixels_of(self, params: Any, codes: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            values = self._tokenizer.values(params, jnp.maximum(codes, 0))
            values = jnp.where(codes[..., None] >= 0, values, 0.0)
            return network.to_bytes(self._tokenizer.pixels(params, values))


def _check_shapes(tokenizer: network.Tokenizer, params: Any) -> None:
    shapes, found = (
        {jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(tree)}
        for tree in (jax.eval_shape(tokenizer.init, jax.random.key(0)), params)
    )
    if shapes != found:
        raise weights.TokenizerError(
            "the weights of the tokenizer are not those of its shape; use the file that "
            "train_tokenizer wrote"
        )


@functools.lru_cache(maxsize=4)
def codec_of(file: bytes) -> Codec:
    """The codec of a file of weights, see `weights.pack`; the last few are kept.

    Raises TokenizerError for a file that is damaged.
    """
    config, tensors, _ = weights.unpack(file)
    return Codec(config, tensors)
