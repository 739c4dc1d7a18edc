"""Files of weights, local or fetched when asked for, and known by their hash."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from evals.features import pth
from jpeglm_jax.huggingface import safetensors

MAX_FILE_BYTES = 2**33
_CHUNK = 2**20
_TIMEOUT = 60.0  # seconds without an answer


class WeightsError(ValueError):
    """A file of weights that is missing, damaged, another than it says, or not what is needed."""


class Weights(NamedTuple):
    """What a file holds.

    Attributes:
      tensors: by name; shapes and types as stored.
      sha256: of the file, 64 hex digits.
      name: of the file.
    """

    tensors: Mapping[str, np.ndarray]
    sha256: str
    name: str


def read(where: epath.PathLike) -> Weights:
    """All tensors of a file: safetensors, or a state dict of PyTorch (.pth, .pt, .bin).

    Args:
      where: a path, or an http(s) URL, which is fetched once and kept (see `fetched`).

    A hash that the file's name states (`...-6726825d.pth`, as PyTorch names its files) must be
    its own. No pickle is executed. Raises WeightsError.
    """
    path = fetched(str(where)) if is_url(str(where)) else epath.Path(where)
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; expected one with weights")
    size = path.stat().length
    if size > MAX_FILE_BYTES:
        raise WeightsError(f"{path} has {size:,} bytes, expected at most {MAX_FILE_BYTES:,}")
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    _require_stated_hash(path.name, sha256)
    try:
        if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80":
            return Weights(pth.read(data), sha256, path.name)
        lying = safetensors.read_header(path)
        tensors = {
            name: tensor.read()
            for name, tensor in lying.items()
            if tensor.dtype in safetensors.DTYPES  # others are counters, not weights
        }
        return Weights(tensors, sha256, path.name)
    except ValueError as error:
        raise WeightsError(f"{path} is no file of weights: {error}") from error


def is_url(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def fetched(url: str) -> epath.Path:
    """The file at a URL, from the cache of earlier runs if it is there.

    The cache is $XDG_CACHE_HOME/jpeglm_jax, by default ~/.cache/jpeglm_jax. Raises WeightsError if
    it cannot be fetched, is too large, or is not the file that its name says.
    """
    name = pathlib.PurePosixPath(urllib.parse.urlparse(url).path).name
    if not name:
        raise WeightsError(f"{url} names no file; expected the URL of one with weights")
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # Files of one name from two places are two files.
    place = folder / "jpeglm_jax" / hashlib.sha256(url.encode()).hexdigest()[:8] / name
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        half = place.with_name(f"{name}.{os.getpid()}.fetching")
        try:
            _require_stated_hash(name, _download(url, half))
            half.replace(place)
        finally:
            half.unlink(missing_ok=True)
    return epath.Path(place)


def _download(url: str, path: pathlib.Path) -> str:
    """Writes the file at a URL; returns its SHA-256."""
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, path.open("wb") as file:
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise WeightsError(f"{url} is larger than {MAX_FILE_BYTES:,} bytes")
                digest.update(chunk)
                file.write(chunk)
    except (urllib.error.URLError, OSError) as error:
        raise WeightsError(f"{url} cannot be fetched: {error}; give the path of a copy") from error
    return digest.hexdigest()


def _require_stated_hash(name: str, sha256: str) -> None:
    found = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", name)
    if found and not sha256.startswith(found[1]):
        raise WeightsError(
            f"{name} has SHA-256 {sha256}, but its name says that it begins with {found[1]}: the "
            "file is damaged, or another; fetch it again"
        )
