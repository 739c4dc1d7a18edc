"""The network of a tokenizer in Flax NNX: a convolutional encoder and decoder around a quantiser.

Convolutional as in VQGAN (Esser et al. 2021), without attention: patches of pixels, residual blocks
of two convolutions, and half the side at each further level.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.representations.vq import quantizers
from data_pipelines.representations.vq.config import TokenizerConfig

_GROUP = 16  # channels that are normalised together


def _conv(inputs: int, outputs: int, side: int, rngs: nnx.Rngs, dtype: Any, **options: Any) -> Any:
    return nnx.Conv(inputs, outputs, (side, side), rngs=rngs, dtype=dtype, **options)


def _norm(width: int, rngs: nnx.Rngs, dtype: Any) -> nnx.GroupNorm:
    groups = width // _GROUP if width % _GROUP == 0 else 1
    return nnx.GroupNorm(width, num_groups=groups, rngs=rngs, dtype=dtype)


class Block(nnx.Module):
    """A residual block of two convolutions, [B, H, W, width] -> the same."""

    def __init__(self, width: int, rngs: nnx.Rngs, dtype: Any):
        self.norm_in, self.norm_out = (_norm(width, rngs, dtype) for _ in range(2))
        self.conv_in = _conv(width, width, 3, rngs, dtype)
        # A block begins as the identity.
        zeros = nnx.initializers.zeros
        self.conv_out = _conv(width, width, 3, rngs, dtype, kernel_init=zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv_in(nnx.silu(self.norm_in(x)))
        return x + self.conv_out(nnx.silu(self.norm_out(h)))


class Encoder(nnx.Module):
    """Pixels -> latents."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        c = config
        self.patch = c.patch
        self.stem = _conv(c.patch**2 * c.channels, c.widths[0], 3, rngs, dtype)
        self.levels = nnx.List(
            nnx.List(Block(width, rngs, dtype) for _ in range(c.blocks)) for width in c.widths
        )
        self.downs = nnx.List(
            _conv(width, wider, 3, rngs, dtype, strides=2)
            for width, wider in itertools.pairwise(c.widths)
        )
        self.norm = _norm(c.widths[-1], rngs, dtype)
        self.head = _conv(c.widths[-1], c.latent_dim, 1, rngs, dtype)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """float32 [B, size, size, C], -1 to 1 -> float32 [B, grid, grid, latent_dim]."""
        x = self.stem(_space_to_depth(pixels, self.patch))
        for number, blocks in enumerate(self.levels):
            for block in blocks:
                x = block(x)
            if number < len(self.downs):
                x = self.downs[number](x)
        return self.head(nnx.silu(self.norm(x))).astype(jnp.float32)


class Decoder(nnx.Module):
    """Quantised latents -> pixels."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        c = config
        self.patch = c.patch
        widths = c.widths[::-1]
        self.stem = _conv(c.latent_dim, widths[0], 3, rngs, dtype)
        self.levels = nnx.List(
            nnx.List(Block(width, rngs, dtype) for _ in range(c.blocks)) for width in widths
        )
        self.ups = nnx.List(
            _conv(width, 4 * narrower, 3, rngs, dtype)
            for width, narrower in itertools.pairwise(widths)
        )
        self.norm = _norm(widths[-1], rngs, dtype)
        self.head = _conv(widths[-1], c.patch**2 * c.channels, 3, rngs, dtype)

    def __call__(self, quantized: jax.Array) -> jax.Array:
        """float32 [B, grid, grid, latent_dim] -> float32 [B, size, size, C], about -1 to 1."""
        x = self.stem(quantized)
        for number, blocks in enumerate(self.levels):
            for block in blocks:
                x = block(x)
            if number < len(self.ups):
                x = _depth_to_space(self.ups[number](x), 2)
        x = self.head(nnx.silu(self.norm(x)))
        return _depth_to_space(x, self.patch).astype(jnp.float32)


def _space_to_depth(x: jax.Array, side: int) -> jax.Array:
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3)
    return x.reshape(b, h // side, w // side, side**2 * c)


def _depth_to_space(x: jax.Array, side: int) -> jax.Array:
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, side, side, c // side**2).swapaxes(2, 3)
    return x.reshape(b, h * side, w * side, c // side**2)


class Tokenizer:
    """The functions of a tokenizer, without its weights.

    Weights ("params") are a nested dict of float32 arrays with string keys: "encoder", "decoder"
    and, for "vq", "codebook", a dict of `quantizers.Codebook`'s fields.

    Args:
      config: the tokenizer's shape.
      dtype: of the network's computations; latents are quantised in float32.
    """

    def __init__(self, config: TokenizerConfig, dtype: Any = jnp.float32):
        self.config = config
        self._dtype = dtype
        self._parts = {}
        for name in ("encoder", "decoder"):
            make = functools.partial(self._new, name, 0)
            graph, state = nnx.split(nnx.eval_shape(make))
            self._parts[name] = graph, nnx.to_pure_dict(state)

    def _new(self, name: str, key: Any) -> Encoder | Decoder:
        part = Encoder if name == "encoder" else Decoder
        return part(self.config, nnx.Rngs(key), self._dtype)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Initial weights; a function of the key alone."""
        c = self.config
        keys = jax.random.split(key, 3)
        params: dict[str, Any] = {
            name: _with_names(nnx.to_pure_dict(nnx.state(self._new(name, key))))
            for name, key in zip(self._parts, keys[:2], strict=True)
        }
        if c.quantizer == "vq":
            params["codebook"] = quantizers.new_codebook(keys[2], c.codes, c.code_dim)._asdict()
        return params

    def latents(self, params: Mapping[str, Any], pixels: jax.Array) -> jax.Array:
        """float32 [B, size, size, C], -1 to 1 -> float32 [B, grid, grid, D].

        Of unit length for "vq"; rounded with the gradient of the latents for "fsq".
        """
        found = self._run("encoder", params, pixels)
        if self.config.quantizer == "fsq":
            return quantizers.fsq_round(found, self.config.levels)
        return quantizers.unit(found)

    def codes(self, params: Mapping[str, Any], latents: jax.Array) -> jax.Array:
        """Latents as `latents` returns them -> int32 [B, grid, grid]."""
        if self.config.quantizer == "fsq":
            return quantizers.fsq_codes(latents, self.config.levels)
        return quantizers.nearest(self.codebook(params), latents)

    def values(self, params: Mapping[str, Any], codes: jax.Array) -> jax.Array:
        """Codes, int32 [B, grid, grid] -> what the decoder takes, float32 [B, grid, grid, D]."""
        if self.config.quantizer == "fsq":
            return quantizers.fsq_values(codes, self.config.levels)
        return self.codebook(params)[codes]

    def pixels(self, params: Mapping[str, Any], values: jax.Array) -> jax.Array:
        """float32 [B, grid, grid, D] -> float32 [B, size, size, C], about -1 to 1."""
        return self._run("decoder", params, values)

    def codebook(self, params: Mapping[str, Any]) -> jax.Array:
        """The codes of "vq", float32 [K, D], unit length."""
        return quantizers.unit(params["codebook"]["sums"])

    def _run(self, name: str, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
        graph, shapes = self._parts[name]
        return nnx.merge(graph, _with_keys_of(shapes, params[name]))(x)


def _with_names(tree: Any) -> Any:
    """The tree with strings as keys."""
    if not isinstance(tree, Mapping):
        return tree
    return {str(key): _with_names(value) for key, value in tree.items()}


def _with_keys_of(shapes: Any, tree: Any) -> Any:
    """The tree with the keys that `shapes` has in place of their names."""
    if not isinstance(shapes, Mapping):
        return tree
    return {key: _with_keys_of(value, tree[str(key)]) for key, value in shapes.items()}


def to_unit(pixels: jax.Array) -> jax.Array:
    """uint8 pixels -> float32, -1 to 1."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def to_bytes(pixels: jax.Array) -> jax.Array:
    """Pixels about -1 to 1 -> uint8."""
    return jnp.clip(jnp.round((pixels + 1) * 127.5), 0, 255).astype(jnp.uint8)


def flatten(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Weights as arrays of the host, by their path: "encoder.stem.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in leaves
    }


def unflatten(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    params: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *folders, last = name.split(".")
        at = params
        for folder in folders:
            at = at.setdefault(folder, {})
        at[last] = tensor
    return params
