"""Representations by name: `make` creates one, `load` and `from_config` recreate a saved one.

representation = make("jpeg", size=256, quality=25)
representation.save(folder)
assert load(folder) == representation
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from etils import epath

from data_pipelines.representations.base import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    Representation,
    Validity,
)
from data_pipelines.representations.tokenizer import load_tokenizer, tokenizer_from_config

__all__ = ["Representation", "Validity", "from_config", "load", "make"]

# Imported on demand, so that a codec's library is needed only by its own representation.
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
      tokenizer: "bytes", or the path of a SentencePiece model.
      num_labels: label tokens, for a label-conditional model.
      **options: options of the representation; see its class.

    Raises:
      ValueError: an unknown name or option, a value out of range, or an unusable tokenizer.
    """
    return _construct(name, {**options, "tokenizer": load_tokenizer(tokenizer, num_labels)})


def from_config(config: dict[str, Any], tokenizer_model: bytes | None = None) -> Representation:
    """The representation with this config.

    Args:
      config: as `Representation.to_config` returned it.
      tokenizer_model: the SentencePiece model, for a representation with BPE.

    Raises:
      ValueError: an incomplete config, an unknown name or option, or a missing or wrong model.
    """
    options = dict(config)
    try:
        name, tokenizer = options.pop("name"), options.pop("tokenizer")
    except KeyError as missing:
        raise ValueError(
            f"the representation's config has no {missing}; expected the values of to_config()"
        ) from missing
    options["tokenizer"] = tokenizer_from_config(tokenizer, tokenizer_model)
    return _construct(name, options)


def load(folder: epath.PathLike) -> Representation:
    """The representation that `Representation.save` wrote into a folder.

    Args:
      folder: local or remote (see `etils.epath`).

    Raises:
      ValueError: a file is missing, or as for `from_config`.
    """
    config, model = epath.Path(folder) / CONFIG_FILE, epath.Path(folder) / TOKENIZER_FILE
    if not config.is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}; expected a folder with a representation")
    values = json.loads(config.read_text())
    if values.get("tokenizer", {}).get("kind") == "bpe" and not model.is_file():
        raise ValueError(
            f"{folder} has no {TOKENIZER_FILE}, which its BPE tokens need; copy the SentencePiece "
            "model that the weights were trained with there"
        )
    return from_config(values, model.read_bytes() if model.is_file() else None)


def _construct(name: str, options: dict[str, Any]) -> Representation:
    if name not in _CLASSES:
        known = ", ".join(f'"{known}"' for known in sorted(_CLASSES))
        raise ValueError(f"found representation {name!r}, expected one of {known}")
    module, class_name = _CLASSES[name]
    cls = getattr(importlib.import_module(module), class_name)
    fields = list(cls.__dataclass_fields__)
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}; expected one of {', '.join(fields)}"
        )
    return cls(**options)
