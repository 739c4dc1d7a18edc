"""The file of a tokenizer: its shape and its weights in the safetensors format, without pickles.

The same tokenizer has the same bytes on every machine, so their SHA-256 identifies it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.representations.vq.config import TokenizerConfig

TOKENIZER_FILE = "tokenizer.safetensors"
_CONFIG, _RUN = "tokenizer", "run"
_FLOAT = np.dtype("<f4")


class TokenizerError(ValueError):
    """A file that is no tokenizer, or one of other images."""


def pack(
    config: TokenizerConfig, tensors: Mapping[str, np.ndarray], run: Mapping[str, Any]
) -> bytes:
    """The bytes of the file.

    Args:
      config: the tokenizer's shape.
      tensors: its weights by name; stored as float32 in the order of the names.
      run: JSON values on how it was trained.
    """
    metadata = {_CONFIG: config.to_json(), _RUN: run}
    header: dict[str, Any] = {
        "__metadata__": {name: _to_json(value) for name, value in metadata.items()}
    }
    parts, at = [], 0
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name], _FLOAT)
        end = at + array.nbytes
        header[name] = {"dtype": "F32", "shape": [*array.shape], "data_offsets": [at, end]}
        parts.append(array.tobytes())
        at = end
    text = _to_json(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def unpack(data: bytes) -> tuple[TokenizerConfig, dict[str, np.ndarray], dict[str, Any]]:
    """(shape, weights by name, how it was trained) from the bytes of the file.

    Raises TokenizerError for bytes that are not such a file.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        if not 0 < size <= len(data) - 8:
            raise ValueError(f"a header of {size:,} bytes in a file of {len(data):,}")
        header = json.loads(data[8 : 8 + size])
        metadata = header.pop("__metadata__", {})
        if _CONFIG not in metadata:
            raise ValueError("the header does not describe a tokenizer")
        config = TokenizerConfig.from_json(json.loads(metadata[_CONFIG]))
        tensors = {name: _tensor(name, entry, data[8 + size :]) for name, entry in header.items()}
        return config, tensors, json.loads(metadata.get(_RUN, "{}"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(
            f"it is damaged or no file that train_tokenizer wrote ({error})"
        ) from error


def _tensor(name: str, entry: Mapping[str, Any], data: bytes) -> np.ndarray:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if entry["dtype"] != "F32" or end - start != 4 * math.prod(shape) or end > len(data):
        raise ValueError(f"{name} is not {list(shape)} of float32 within the file")
    return np.frombuffer(data[start:end], _FLOAT).reshape(shape)


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
