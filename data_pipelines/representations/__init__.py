"""Representations by name: `make` one, or get it back `from_config` or from a folder.

representation = make("jpeg", size=256, quality=25)
representation.save(folder)
assert load(folder) == representation
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from etils import epath

from data_pipelines.representations.base import CONFIG_FILE, Representation, Validity
from data_pipelines.representations.tokenizer import TOKENIZER_FILE

__all__ = ["Representation", "Validity", "from_config", "load", "make"]

# Imported when asked for: a codec's library is needed by its own representation only.
_CLASSES = {
    "avc": ("data_pipelines.representations.avc.representation", "AvcRepresentation"),
    "jpeg": ("data_pipelines.representations.jpeg.representation", "JpegRepresentation"),
}


def make(
    name: str, *, tokenizer: str = "bytes", num_labels: int = 0, **options: Any
) -> Representation:
    """The representation with this name.

    Args:
      name: "avc" or "jpeg".
      tokenizer: "bytes", the path of a SentencePiece model, or for "jpeg" "codewords".
      num_labels: label tokens, for a label-conditional model.
      **options: of the representation; see its class.

    Raises:
      ValueError: an unknown name or option, a value out of range, or an unusable tokenizer.
    """
    loaded = _class(name).load_tokenizer(tokenizer, num_labels, options)
    return _construct(name, {**options, "tokenizer": loaded})


def from_config(config: dict[str, Any], tokenizer_model: bytes | None = None) -> Representation:
    """The representation whose `to_config` this is; one with BPE needs its SentencePiece model."""
    options = dict(config)
    try:
        name, tokenizer = options.pop("name"), options.pop("tokenizer")
    except KeyError as missing:
        raise ValueError(
            f"the representation's config has no {missing}; expected what to_config() gave"
        ) from missing
    options["tokenizer"] = _class(name).tokenizer_from_config(tokenizer, tokenizer_model, options)
    return _construct(name, options)


def load(folder: epath.PathLike) -> Representation:
    """What `Representation.save` wrote into the folder. Raises ValueError if it is not there."""
    config, model = epath.Path(folder) / CONFIG_FILE, epath.Path(folder) / TOKENIZER_FILE
    if not config.is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}; expected a folder with a representation")
    values = json.loads(config.read_text())
    if values.get("tokenizer", {}).get("model_sha256") and not model.is_file():
        raise ValueError(
            f"{folder} has no {TOKENIZER_FILE}, without which its tokens mean nothing; copy the "
            "SentencePiece model that the weights were trained with there"
        )
    return from_config(values, model.read_bytes() if model.is_file() else None)


def _class(name: str) -> Any:
    if name not in _CLASSES:
        known = ", ".join(f'"{known}"' for known in sorted(_CLASSES))
        raise ValueError(f"found representation {name!r}, expected one of {known}")
    module, class_name = _CLASSES[name]
    return getattr(importlib.import_module(module), class_name)


def _construct(name: str, options: dict[str, Any]) -> Representation:
    cls = _class(name)
    fields = list(cls.__dataclass_fields__)
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}; expected some of {', '.join(fields)}"
        )
    return cls(**options)
