"""The shape of a model and its remat policies, from `config.model`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from jpeglm_jax.model.attention import OUTPUT as ATTENTION

_POLICIES = jax.checkpoint_policies
QKV, GATE, UP, OUTPUT = "qkv", "gate", "up", "output"


def _offload(*names: str) -> Callable[..., Any]:
    """Saves the named activations in the host's memory, and no others."""
    return _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )


# Activations of a layer that are saved for the backward pass; all others are computed again. From
# max memory and min operations to min memory and max operations.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,  # all
    "minimal_with_attention": _POLICIES.save_only_these_names(QKV, ATTENTION, GATE, UP, OUTPUT),
    "minimal": _POLICIES.dots_with_no_batch_dims_saveable,  # the projections
    "save_qkv_attention": _POLICIES.save_only_these_names(QKV, ATTENTION),
    "save_qkv": _POLICIES.save_only_these_names(QKV),
    "save_attention": _POLICIES.save_only_these_names(ATTENTION),
    "offload_qkv": _offload(QKV),  # in the host's memory
    "offload_qkv_attention": _offload(QKV, ATTENTION),
    "full": _POLICIES.nothing_saveable,  # the layer's input alone
}
# Policies under which attention runs only once: its output and its normaliser are saved.
KEEP_ATTENTION = {
    "none",
    "minimal_with_attention",
    "save_qkv_attention",
    "save_attention",
    "offload_qkv_attention",
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, and how it computes. Defaults are the paper's (Llama-2 7B)."""

    vocab_size: int
    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    ffn: int = 11008
    norm_eps: float = 1e-5
    rope_theta: float = 1e4
    qk_norm: bool = False
    tied: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    max_documents: int = 16  # of a row, padding counted as one: see `attention`
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        if self.remat not in REMAT_POLICIES:
            raise ValueError(
                f"model.remat is {self.remat!r}; expected one of {', '.join(REMAT_POLICIES)}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.kv_heads = {self.kv_heads} does not divide model.heads = {self.heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"model.head_dim is {self.head_dim}; rotary positions need an even number"
            )

    @property
    def recomputes_attention(self) -> bool:
        """Whether the backward pass runs the attention's forward pass again."""
        return self.remat not in KEEP_ATTENTION


def compute_dtype(name: str, platform: str) -> str:
    """The configured compute dtype; "auto" is bfloat16 on a TPU or GPU and float32 on a CPU."""
    if name == "auto":
        return "float32" if platform == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"model.dtype is {name!r}; expected auto, float32 or bfloat16")
    return name


def model_config(config: ConfigDict, vocab_size: int, platform: str) -> ModelConfig:
    """The shape that `config.model` describes; `platform` is "cpu", "gpu" or "tpu"."""
    values = config.to_dict()
    values["max_documents"] = values["max_documents"] or ModelConfig.max_documents
    values["dtype"] = compute_dtype(values["dtype"], platform)
    return ModelConfig(vocab_size=vocab_size, **values)
