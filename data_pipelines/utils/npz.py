"""Writes .npz files atomically and reads them without unpickling, whole or an array at a time.

`load` reads arrays into memory. `Rows` reads single rows of one array that may be larger than
memory, such as the images of a sample batch.
"""

from __future__ import annotations

import io
import math
import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import IO, NamedTuple

import numpy as np
from etils import epath

from data_pipelines.utils.files import write_atomically

_MAX_RATIO = 1032  # of the deflate format
_SUFFIX = ".npy"  # of a member of the archive
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field
_READ_ERRORS = (ValueError, OSError, EOFError, KeyError, AttributeError, MemoryError)
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError)


class NpzError(ValueError):
    """A file is missing, damaged or not an .npz file of plain arrays."""


class Header(NamedTuple):
    """What an array's header states.

    Attributes:
      shape: of the array.
      dtype: of its values.
      fortran_order: whether the first index varies fastest in the file.
      offset: bytes before the values in its member of the archive.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    offset: int


def save(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to an .npz file atomically; `path` may be remote."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]  # of names
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def load(path: epath.PathLike, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file.

    Args:
      path: of the file; may be remote.
      names: of the arrays to read; those that the file lacks are ignored. None: all.

    Raises NpzError for a pickle or a damaged file.
    """
    with _Archive(path) as archive:
        wanted = [name for name in archive.names if names is None or name in names]
        for name in wanted:
            archive.header(name)
        return {name: archive.read(name) for name in wanted}


def headers(path: epath.PathLike) -> dict[str, Header]:
    """The header of each array of an .npz file, by name, without reading the arrays.

    Raises NpzError for a damaged file, and for one that is no .npz file.
    """
    with _Archive(path) as archive:
        return {name: archive.header(name) for name in archive.names}


class Rows:
    """The rows of one array in an .npz file, read one at a time; safe in threads.

    An array that was stored without compression is read in place. A compressed one is unpacked to
    a temporary file when the first row is read. Memory holds the requested rows only. Values that
    were stored without compression are not compared with the archive's checksum.

    Attributes:
      shape: of the array; the first dimension counts the rows.
      dtype: of its values.
    """

    def __init__(self, path: epath.PathLike, name: str):
        """Opens an array. Raises NpzError if it is missing, of objects or in Fortran order."""
        self._path, self._name = epath.Path(path), name
        with _Archive(path) as archive:
            if name not in archive.names:
                raise NpzError(f"{path} holds {sorted(archive.names)}, expected an array {name}")
            header = archive.header(name)
            self._stored_at = archive.stored_at(name)
        self.shape, self.dtype = header.shape, header.dtype
        if self.dtype.hasobject:
            raise NpzError(
                f"{name} in {path} holds Python objects, which only a pickle can restore; expected "
                "plain numbers"
            )
        if not self.shape:
            raise NpzError(f"{name} in {path} is a single value, expected rows")
        if header.fortran_order and len(self.shape) > 1:
            raise NpzError(
                f"{name} in {path} is in Fortran order; save np.ascontiguousarray of it instead"
            )
        self._header_size = header.offset
        self._row_size = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._first = 0  # offset of row 0 in `_file`

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, number: int) -> bytes:
        """The bytes of a row. Raises NpzError if the file was truncated or damaged since."""
        if not 0 <= number < len(self):
            raise IndexError(f"found row {number}, expected 0 to {len(self) - 1}")
        with self._lock:
            if self._file is None:
                self._open()
            assert self._file is not None
            self._file.seek(self._first + number * self._row_size)
            data = self._file.read(self._row_size)
        if len(data) != self._row_size:
            raise NpzError(f"row {number} of {self._name} in {self._path} is truncated")
        return data

    def __getitem__(self, number: int) -> np.ndarray:
        """A row as a read-only array of shape `shape[1:]`."""
        return np.frombuffer(self.read(number), self.dtype).reshape(self.shape[1:])

    def _open(self) -> None:
        if self._stored_at is not None:
            self._file = self._path.open("rb")
            self._first = self._stored_at + self._header_size
            return
        unpacked = tempfile.TemporaryFile(prefix="jpeglm_jax_npz_")  # noqa: SIM115  # kept open
        with _Archive(self._path) as archive:
            archive.unpack(self._name, unpacked)
        self._file, self._first = unpacked, self._header_size

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self._file.close()  # type: ignore[union-attr]


class _Archive:
    """An .npz file, open for reading; a context manager that translates errors to NpzError."""

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)

    def __enter__(self) -> _Archive:
        if not self._path.is_file():
            raise NpzError(f"{self._path} does not exist, expected an .npz file")
        self._size = self._path.stat().length
        self._file = self._path.open("rb")
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._members = {
                info.filename.removesuffix(_SUFFIX): info
                for info in self._zip.infolist()
                if info.filename.endswith(_SUFFIX)
            }
            for info in self._zip.infolist():
                if info.file_size > _MAX_RATIO * self._size:
                    raise ValueError(
                        f"{info.filename} states {info.file_size:,} bytes in a file of "
                        f"{self._size:,}"
                    )
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if isinstance(error, NpzError):
            return
        if isinstance(error, _DAMAGE):
            raise NpzError(f"{self._path} is damaged: {error}") from error
        if isinstance(error, _READ_ERRORS):
            raise NpzError(f"{self._path} is not an .npz file of plain arrays: {error}") from error

    @property
    def names(self) -> Collection[str]:
        return self._members

    def header(self, name: str) -> Header:
        """Raises ValueError for an array whose header states another size than there are bytes."""
        info = self._members[name]
        with self._zip.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, fortran_order, dtype = read(file)
            header = Header(shape, dtype, fortran_order, file.tell())
        stated = header.offset + math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and stated != info.file_size:
            raise ValueError(
                f"{info.filename} states {list(shape)} of {dtype}, {stated:,} bytes, but has "
                f"{info.file_size:,}"
            )
        return header

    def read(self, name: str) -> np.ndarray:
        with self._zip.open(self._members[name]) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def stored_at(self, name: str) -> int | None:
        """The position of an uncompressed member in the file; None for a compressed one."""
        info = self._members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return None
        self._file.seek(info.header_offset)
        signature, name_length, extra = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise ValueError(f"there is no {info.filename} where the archive states it")
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra
        if start + info.file_size > self._size:
            raise ValueError(f"{info.filename} is truncated")
        return start

    def unpack(self, name: str, target: IO[bytes]) -> None:
        with self._zip.open(self._members[name]) as file:
            shutil.copyfileobj(file, target, 2**20)
