"""config.json of `transformers`' Llama <-> `ModelConfig`; `convert` reads and writes it.

Both names of the rotary base are read: `rope_theta` with `rope_scaling` (versions up to 4) and
`rope_parameters` (from 5 on). Both are written. A value means what it means to `transformers`: a
missing one is LlamaConfig's default, and what our model has not is refused by name.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from etils import epath

from jpeglm_jax.huggingface import ConversionError
from jpeglm_jax.model.config import ModelConfig

CONFIG_FILE = "config.json"
# LlamaConfig's defaults for missing values.
_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_IDS = {"bos_token_id": 1, "eos_token_id": 2}
_THETA = 10000.0


class Described(NamedTuple):
    """The content of a config.json.

    Attributes:
      model: the shape; `model.vocab_size` is the number of rows of the embedding.
      seq_len: sequence length of the model, max_position_embeddings.
      ids: "bos_token_id" and "eos_token_id" -> the ids with that role; empty if it states none.
    """

    model: ModelConfig
    seq_len: int
    ids: dict[str, tuple[int, ...]]


def read(folder: epath.Path) -> Described:
    """Reads a checkpoint's config.json.

    Raises:
      ConversionError: it is missing or damaged, or has features that our model has not; all of
        them are named.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConversionError(f"{folder} has no {CONFIG_FILE}; expected a Llama checkpoint")
    values = read_object(path)
    wrong = _refused(values)
    if wrong:
        raise ConversionError(f"{path} describes an unsupported model: " + "; ".join(wrong))
    try:
        return _described(values)
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"{path}: {_sentence(error)}") from error


def read_object(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConversionError if there is none."""
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is no JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise ConversionError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def require_ids(path: epath.Path, found: dict[str, tuple[int, ...]], bos: int, eos: int) -> None:
    """Raises ConversionError if a file's ids of start and end are not those of the tokens.

    Args:
      path: of the file.
      found: see `Described.ids`.
      bos, eos: of the tokenizer.
    """
    wrong = [
        f"{name} is {', '.join(map(str, found[name]))}, but {ours} by the tokenizer"
        for name, ours in (("bos_token_id", bos), ("eos_token_id", eos))
        if found.get(name) and set(found[name]) != {ours}
    ]
    if wrong:
        raise ConversionError(
            f"{path}: {'; '.join(wrong)}; expected the tokenizer that the weights were trained "
            "with, and its ids"
        )


def stated_ids(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The ids of start and end that a file states, see `Described.ids`.

    Raises ValueError for values that are no ids.
    """
    found = {}
    for name in _IDS:
        value = values.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(each, bool) or not isinstance(each, int) for each in ids):
            raise ValueError(f"{name} is {value!r}, expected an id or a list of ids")
        found[name] = tuple(ids)
    return found


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
    if values.get("sliding_window") is not None and values.get("use_sliding_window") is not False:
        wrong.append(f"sliding_window is {values['sliding_window']!r}, expected full attention")
    layers = values.get("layer_types") or []
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        wrong.append(f"layer_types are {layers!r}, expected full_attention")
    return wrong + _refused_rotary(values)


def _refused_rotary(values: dict[str, Any]) -> list[str]:
    wrong, parts, bases = [], [values.get("partial_rotary_factor")], [values.get("rope_theta")]
    for name in ("rope_scaling", "rope_parameters"):
        rope = values.get(name) or {}
        if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
            wrong.append(f"{name} is {rope!r}, expected one set of values for all layers")
            continue
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            wrong.append(f"{name} is of type {kind!r}, expected plain rotary positions")
        parts.append(rope.get("partial_rotary_factor"))
        bases.append(rope.get("rope_theta"))
    for part in dict.fromkeys(part for part in parts if part not in (None, 1)):
        wrong.append(f"partial_rotary_factor is {part}, expected 1")
    if len({base for base in bases if base is not None}) > 1:
        wrong.append(
            f"rope_theta is {bases[0]}, {bases[1]} in rope_scaling and {bases[2]} in "
            "rope_parameters, expected one base"
        )
    return wrong


def _described(values: dict[str, Any]) -> Described:
    # A missing id is LlamaConfig's default; null states that there is none.
    ids = stated_ids({**_IDS, **values})
    values = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
    width, heads = _count(values, "hidden_size"), _count(values, "num_attention_heads")
    if "head_dim" not in values and width % heads:
        raise ValueError(
            f"hidden_size = {width} is not a multiple of num_attention_heads = {heads}, and there "
            "is no head_dim"
        )
    values = {"num_key_value_heads": heads, "head_dim": width // heads, **values}
    ropes = [values, values.get("rope_scaling", {}), values.get("rope_parameters", {})]
    bases = [rope["rope_theta"] for rope in ropes if rope.get("rope_theta") is not None]
    model = ModelConfig(
        vocab_size=_count(values, "vocab_size"),
        layers=_count(values, "num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=_count(values, "num_key_value_heads"),
        head_dim=_count(values, "head_dim"),
        ffn=_count(values, "intermediate_size"),
        norm_eps=_positive("rms_norm_eps", values["rms_norm_eps"]),
        rope_theta=_positive("rope_theta", bases[0] if bases else _THETA),
        tied=bool(values.get("tie_word_embeddings", False)),
    )
    return Described(model, _count(values, "max_position_embeddings"), ids)


def _positive(name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a finite number above 0")
    return float(value)


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
    return json.dumps(values, indent=2, allow_nan=False) + "\n"
