"""Writes .npz files atomically and reads them without unpickling."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
from etils import epath

from data_pipelines.utils.files import write_atomically


class NpzError(ValueError):
    """A file is missing, damaged or not an .npz file of plain arrays."""


def save(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to an .npz file atomically; `path` may be remote."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]  # of names
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def load(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file. Raises NpzError for a pickle or a damaged file."""
    path = epath.Path(path)
    if not path.is_file():
        raise NpzError(f"{path} does not exist, expected an .npz file")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, AttributeError) as error:
        raise NpzError(f"{path} is not an .npz file of plain arrays: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise NpzError(f"{path} is damaged: {error}") from error
