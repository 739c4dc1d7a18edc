"""Writes .npz files atomically and reads them without unpickling."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
from etils import epath

from data_pipelines.utils.files import write_atomically

_MAX_RATIO = 1032  # of the deflate format


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
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                _require_bytes(archive, member, len(data))
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, AttributeError, MemoryError) as error:
        raise NpzError(f"{path} is not an .npz file of plain arrays: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise NpzError(f"{path} is damaged: {error}") from error


def _require_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> None:
    """Raises ValueError for an array whose header states another size than there are bytes."""
    if member.file_size > _MAX_RATIO * size:
        raise ValueError(
            f"{member.filename} states {member.file_size:,} bytes in a file of {size:,}"
        )
    if not member.filename.endswith(".npy"):
        return
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        stated = file.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and stated != member.file_size:
        raise ValueError(
            f"{member.filename} states {list(shape)} of {dtype}, {stated:,} bytes, but has "
            f"{member.file_size:,}"
        )
