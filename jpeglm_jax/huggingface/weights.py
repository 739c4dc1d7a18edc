"""The table from tensors of `transformers`' Llama to our parameters; `convert` uses it.

`transformers` stores a linear layer as [outputs, inputs], one tensor per layer of the model. Ours
is [inputs, outputs] with heads as an axis of their own, and all layers stacked. The rotary pairing
(i, i + K/2) is the same, so no head is permuted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jpeglm_jax.huggingface import ConversionError
from jpeglm_jax.huggingface.safetensors import DTYPES, Tensor
from jpeglm_jax.model.config import ModelConfig

# (name, shape in `transformers`) -> that tensor.
Reader = Callable[[str, tuple[int, ...]], np.ndarray]

EMBED = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Tables that older versions stored; they follow from the configuration.
_DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


class Part(NamedTuple):
    """A part of a parameter: its index on the leading axis (`...`: the whole), and its values."""

    index: Any
    array: np.ndarray


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our parameters and the tensors of `transformers` that it consists of.

    Attributes:
      path: in our tree of parameters.
      shape: of our parameter; [layers, ...] if `stacked`.
      name: in `transformers`, with {} for the number of the layer if `stacked`.
      tensor_shape: of each such tensor.
      stacked: whether there is one tensor per layer.
      linear: whether it is a linear layer, which is transposed.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    name: str
    tensor_shape: tuple[int, ...]
    stacked: bool
    linear: bool

    @property
    def names(self) -> list[str]:
        """All tensors of this parameter, in the order of the layers."""
        return [self.name.format(n) for n in range(self.shape[0])] if self.stacked else [self.name]

    def parts(self, read: Reader) -> Iterator[Part]:
        """Reads the tensors one by one and yields them in our layout."""
        shape = self.shape[1:] if self.stacked else self.shape
        for number, name in enumerate(self.names):
            tensor = read(name, self.tensor_shape)
            ours = (tensor.T if self.linear else tensor).reshape(shape)
            yield Part(number if self.stacked else ..., ours)

    def tensor(self, ours: np.ndarray) -> np.ndarray:
        """One layer of the parameter (all of it if not stacked) as `transformers` stores it."""
        return ours.reshape(self.tensor_shape[::-1]).T if self.linear else ours


def table(config: ModelConfig) -> tuple[Weight, ...]:
    """All parameters of a model.

    Raises ConversionError for a model that `transformers`' Llama has not.
    """
    if config.qk_norm:
        raise ConversionError(
            "model.qk_norm is on: transformers' Llama has no norm of queries and keys "
            "(q_norm, k_norm), so it cannot represent these weights"
        )
    c = config
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim

    def linear(path: str, name: str, tensor_shape: tuple[int, int], *shape: int) -> Weight:
        name = f"model.layers.{{}}.{name}.weight"
        keys = ("blocks", *path.split("."))
        return Weight(keys, (c.layers, *shape), name, tensor_shape, stacked=True, linear=True)

    def norm(path: str, name: str) -> Weight:
        name, shape = f"model.layers.{{}}.{name}.weight", (c.layers, c.width)
        keys = ("blocks", path, "scale")
        return Weight(keys, shape, name, (c.width,), stacked=True, linear=False)

    def single(path: str, name: str, *shape: int, linear: bool = False) -> Weight:
        tensor_shape = shape[::-1] if linear else shape
        return Weight(tuple(path.split(".")), shape, name, tensor_shape, False, linear)

    head = [single("head", HEAD, c.width, c.vocab_size, linear=True)]
    return (
        single("embed", EMBED, c.vocab_size, c.width),
        norm("attention_norm", "input_layernorm"),
        linear("attention.q", "self_attn.q_proj", (queries, c.width), c.width, c.heads, c.head_dim),
        linear("attention.k", "self_attn.k_proj", (keys, c.width), c.width, c.kv_heads, c.head_dim),
        linear("attention.v", "self_attn.v_proj", (keys, c.width), c.width, c.kv_heads, c.head_dim),
        linear("attention.o", "self_attn.o_proj", (c.width, queries), c.heads, c.head_dim, c.width),
        norm("ffn_norm", "post_attention_layernorm"),
        linear("ffn.gate", "mlp.gate_proj", (c.ffn, c.width), c.width, c.ffn),
        linear("ffn.up", "mlp.up_proj", (c.ffn, c.width), c.width, c.ffn),
        linear("ffn.down", "mlp.down_proj", (c.width, c.ffn), c.ffn, c.width),
        single("norm.scale", "model.norm.weight", c.width),
        *([] if c.tied else head),
    )


def tree(config: ModelConfig, leaf: Callable[[Weight], Any]) -> dict[str, Any]:
    """Our tree of parameters, with `leaf(weight)` for each."""
    params: dict[str, Any] = {}
    for weight in table(config):
        *outer, last = weight.path
        node = params
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = leaf(weight)
    return params


def check(config: ModelConfig, found: Mapping[str, Tensor]) -> None:
    """Refuses a checkpoint whose tensors are not exactly those of the model, naming them.

    If the model ties the head to the embedding, a stored head must equal the embedding.
    """
    if config.layers > len(found):
        raise ConversionError(
            f"config.json states {config.layers:,} layers, but the checkpoint has {len(found):,} "
            "tensors in all; fetch both again"
        )
    expected = {name: weight.tensor_shape for weight in table(config) for name in weight.names}
    copied_head = config.tied and HEAD in found
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected and not _DERIVED.fullmatch(name)]
    if copied_head:
        extra.remove(HEAD)
    present = {name: (found[name], shape) for name, shape in expected.items() if name in found}
    misshapen = [
        f"{name} is {list(tensor.shape)}, expected {list(shape)}"
        for name, (tensor, shape) in present.items()
        if tensor.shape != shape
    ]
    untyped = [
        f"{name} is {tensor.dtype}, expected {', '.join(DTYPES)}"
        for name, (tensor, _) in present.items()
        if tensor.dtype not in DTYPES
    ]
    groups = {"missing": missing, "unknown": extra, "misshapen": misshapen, "not usable": untyped}
    wrong = [f"{kind}: {_some(names)}" for kind, names in groups.items() if names]
    if wrong:
        raise ConversionError(
            "the tensors are not those of the model that config.json describes. " + ". ".join(wrong)
        )
    if copied_head and not np.array_equal(found[HEAD].read(), found[EMBED].read()):
        raise ConversionError(
            f"config.json ties the head to the embedding, but {HEAD} differs from {EMBED}; set "
            "tie_word_embeddings to false if the head was trained"
        )


def _some(names: list[str], max_names: int = 8) -> str:
    rest = len(names) - max_names
    return "; ".join(names[:max_names]) + (f"; and {rest} more" if rest > 0 else "")
