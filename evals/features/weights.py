"""Reads weights files, local or at a URL, and identifies them by their SHA-256.

The extractors load their parameters from the tensors that `read` returns.
"""

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

from evals.features.base import WeightsError
from jpeglm_jax.huggingface import pth, safetensors

MAX_FILE_BYTES = 2**33
_CHUNK = 2**20
_TIMEOUT = 60.0  # seconds without a response


class Weights(NamedTuple):
    """The contents of a weights file.

    Attributes:
      tensors: by name; shapes and dtypes as stored.
      sha256: of the file, 64 hex digits.
      name: of the file.
    """

    tensors: Mapping[str, np.ndarray]
    sha256: str
    name: str


def read(where: epath.PathLike) -> Weights:
    """All tensors of a file: safetensors, or a state dict of PyTorch (.pth, .pt, .bin).

    Args:
      where: a path, or an http(s) URL, which is downloaded once (see `download`).

    A hash in the file's name (`...-6726825d.pth`, as PyTorch names its files) must match the
    contents. No pickle is executed. Raises WeightsError.
    """
    path = download(str(where)) if is_url(str(where)) else epath.Path(where)
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; expected a weights file")
    size = path.stat().length
    if size > MAX_FILE_BYTES:
        raise WeightsError(f"{path} has {size:,} bytes, expected at most {MAX_FILE_BYTES:,}")
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    _require_hash_in_name(path.name, sha256)
    try:
        if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80":
            return Weights(pth.read(data), sha256, path.name)
        header = safetensors.read_header(path)
        tensors = {
            name: tensor.read()
            for name, tensor in header.items()
            if tensor.dtype in safetensors.DTYPES  # other dtypes are counters, not weights
        }
        return Weights(tensors, sha256, path.name)
    except ValueError as error:
        raise WeightsError(f"{path} is not a weights file: {error}") from error


def is_url(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def download(url: str) -> epath.Path:
    """Downloads the file at a URL, unless an earlier call has cached it; returns the local path.

    The cache is $XDG_CACHE_HOME/jpeglm_jax, by default ~/.cache/jpeglm_jax. Raises WeightsError if
    the download fails, the file is too large, or the hash in its name does not match.
    """
    name = pathlib.PurePosixPath(urllib.parse.urlparse(url).path).name
    if not name:
        raise WeightsError(f"{url} names no file; expected the URL of a weights file")
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # Files of the same name at two URLs are different files.
    cached = folder / "jpeglm_jax" / hashlib.sha256(url.encode()).hexdigest()[:8] / name
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_name(f"{name}.{os.getpid()}.partial")
        try:
            _require_hash_in_name(name, _download_to(partial, url))
            partial.replace(cached)
        finally:
            partial.unlink(missing_ok=True)
    return epath.Path(cached)


def _download_to(path: pathlib.Path, url: str) -> str:
    """Writes the file at a URL to a path; returns its SHA-256."""
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, path.open("wb") as file:
            while chunk := response.read(_CHUNK):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise WeightsError(f"{url} is larger than {MAX_FILE_BYTES:,} bytes")
                digest.update(chunk)
                file.write(chunk)
    except (urllib.error.URLError, OSError) as error:
        raise WeightsError(f"{url} cannot be downloaded: {error}; give a local path") from error
    return digest.hexdigest()


def _require_hash_in_name(name: str, sha256: str) -> None:
    found = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", name)
    if found and not sha256.startswith(found[1]):
        raise WeightsError(
            f"{name} has SHA-256 {sha256}, expected one that begins with {found[1]} as in its "
            "name; the file is damaged or renamed: download it again"
        )
