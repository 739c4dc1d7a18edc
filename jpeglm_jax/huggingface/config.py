"""config.json of `transformers`' Llama <-> `ModelConfig`; `convert` reads and writes it.

Both names of the rotary base are read: `rope_theta` with `rope_scaling` (versions up to 4) and
`rope_parameters` (from 5 on). Both are written.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from etils import epath

from jpeglm_jax.huggingface import ConversionError
from jpeglm_jax.model.config import ModelConfig

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"

# LlamaConfig's defaults for missing values.
_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_THETA = 10000.0


class Described(NamedTuple):
    """The content of a config.json.

    Attributes:
      model: the shape; `model.vocab_size` is the number of rows of the embedding.
      seq_len: sequence length of the model, max_position_embeddings.
    """

    model: ModelConfig
    seq_len: int


def read(folder: epath.Path) -> Described:
    """Reads a checkpoint's config.json.

    Raises:
      ConversionError: it is missing or damaged, or has features that our model has not; all of
        them are named.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConversionError(f"{folder} has no {CONFIG_FILE}; expected a Llama checkpoint")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConversionError(f"{path} is no JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise ConversionError(f"{path} holds {type(values).__name__}, expected an object")
    wrong = _refused(values)
    if wrong:
        raise ConversionError(f"{path} describes an unsupported model: " + "; ".join(wrong))
    try:
        return _described(values)
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"{path}: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _refused(values: dict[str, Any]) -> list[str]:
    """The features of the model that ours has not, one phrase each."""
    wrong = []
    if values.get("model_type") != "llama":
        wrong.append(f"model_type is {values.get('model_type')!r}, expected 'llama'")
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        wrong.append(f"hidden_act is {values['hidden_act']!r}, expected 'silu'")
    for name in ("attention_bias", "mlp_bias", "quantization_config"):
        if values.get(name):
            wrong.append(f"{name} is {values[name]!r}, expected none")
    for name in ("rope_scaling", "rope_parameters"):
        rope = values.get(name) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            wrong.append(f"{name} is of type {kind!r}, expected plain rotary positions")
        part = rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
        if part != 1.0:
            wrong.append(f"partial_rotary_factor is {part}, expected 1")
    return list(dict.fromkeys(wrong))


def _described(values: dict[str, Any]) -> Described:
    values = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
    width, heads = _count(values, "hidden_size"), _count(values, "num_attention_heads")
    if "head_dim" not in values and width % heads:
        raise ValueError(
            f"hidden_size = {width} is not a multiple of num_attention_heads = {heads}, and there "
            "is no head_dim"
        )
    values = {"num_key_value_heads": heads, "head_dim": width // heads, **values}
    rope = values.get("rope_parameters", {})
    model = ModelConfig(
        vocab_size=_count(values, "vocab_size"),
        layers=_count(values, "num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=_count(values, "num_key_value_heads"),
        head_dim=_count(values, "head_dim"),
        ffn=_count(values, "intermediate_size"),
        norm_eps=float(values["rms_norm_eps"]),
        rope_theta=float(rope.get("rope_theta", values.get("rope_theta", _THETA))),
        tied=bool(values.get("tie_word_embeddings", False)),
    )
    return Described(model, _count(values, "max_position_embeddings"))


def _count(values: dict[str, Any], name: str) -> int:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number of 1 or more")
    return value


def to_json(model: ModelConfig, *, seq_len: int, bos: int, eos: int, dtype: str) -> str:
    """The text of config.json.

    Args:
      model: a plain Llama.
      seq_len: sequence length that the model was trained with.
      bos, eos: ids of the start token of an unlabelled document and of the end token.
      dtype: stored type of the weights.

    Raises:
      ConversionError: `transformers` has no Llama of this shape.
    """
    c = model
    if c.width % c.heads:
        raise ConversionError(
            f"model.width = {c.width} is not a multiple of model.heads = {c.heads}, which "
            "transformers' Llama requires, whatever model.head_dim is"
        )
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "max_position_embeddings": seq_len,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": c.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    }
    return json.dumps(values, indent=2) + "\n"


def write_generation(
    folder: epath.Path,
    *,
    seq_len: int,
    bos: int,
    eos: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    """Writes generation_config.json: the default sampling parameters of `generate` and vLLM."""
    values = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,  # tokens after the end of a document are not read
        "do_sample": True,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_length": seq_len,
    }
    (folder / GENERATION_FILE).write_text(json.dumps(values, indent=2) + "\n")
