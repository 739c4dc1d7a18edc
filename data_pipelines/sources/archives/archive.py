"""Tar archives, plain or compressed: lists members up to any damage."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from data_pipelines.sources import files

# Maximum size of an extra header (long names, pax records). Without it `tarfile` would allocate
# whatever length a damaged header states.
_MAX_HEADER_BYTES = 2**20

# All errors that `tarfile` and the decompressors raise for damaged bytes.
DAMAGE = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    LookupError,
    RecursionError,
    *files.READ_ERRORS,
)

_PADDING_BYTES = 2**20

_DECOMPRESSORS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)

_KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
}


class TrailingData(tarfile.TarError):
    """Something follows the end of an archive; its members before the end are whole."""


class Member(NamedTuple):
    """One entry: `kind` is "file", "folder" or another type; `data` is set only on request."""

    name: str
    kind: str
    offset: int
    size: int
    data: bytes | None


def open_archive(path: str) -> IO[Any]:
    """Opens a tar at its beginning; its first bytes decide on the decompressor.

    A compressed archive seeks forward by decompressing and backward by starting over.

    Raises:
      OSError: it cannot be read.
      StorageUnavailable: an object store does not answer.
    """
    file = files.open_binary(path)
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        file.close()
        raise OSError(0, "compressed with zstd, expected plain, gzip, bzip2 or xz: unpack it first")
    opener = next((opener for magic, opener in _DECOMPRESSORS if start.startswith(magic)), None)
    if opener is None:
        return file
    if files.is_remote(path):
        return opener(file)
    file.close()  # A decompressor closes only files that it opened itself.
    return opener(path)


def is_compressed(file: IO[Any]) -> bool:
    """Whether an open archive is compressed, so that random access is slow."""
    return isinstance(file, gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile)


def members(file: IO[Any], with_data: Callable[[str], bool]) -> Iterator[Member]:
    """Yields the complete entries of an open archive in order, reading forward.

    `with_data(name)` decides which small files are read at once. Raises one of DAMAGE at the first
    damaged entry, after yielding the entries before it.
    """
    archive = tarfile.TarFile(fileobj=_Guarded(file))  # type: ignore[arg-type]
    end = -1
    while (entry := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # Frees the list of entries.
        if archive.offset <= end:
            raise tarfile.ReadError("a header leads backward")
        end = archive.offset
        kind, data = _kind(entry), None
        if kind == "file":
            # Reading the last byte, or all, detects a truncated file.
            whole = with_data(entry.name) and entry.size <= _MAX_HEADER_BYTES
            wanted = entry.size if whole else min(entry.size, 1)
            file.seek(entry.offset_data + entry.size - wanted)
            data = file.read(wanted)
            if len(data) < wanted:
                raise tarfile.ReadError(f"the file ends within {entry.name!r}")
            data = data if whole else None
        yield Member(entry.name, kind, entry.offset_data, entry.size, data)
    # `tarfile` treats a damaged header as the end. The real end is a block of zeros.
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the file ends without an end-of-archive mark")
    if any(block):
        raise tarfile.ReadError("a header is damaged")
    _check_padding(file, archive.offset + len(block))


def first_bytes(file: IO[Any]) -> bytes:
    """The first bytes of an open archive, to show what it is instead."""
    file.seek(0)
    return file.read(20)


def _check_padding(file: IO[Any], offset: int) -> None:
    """Raises TrailingData unless only zeros follow the end-of-archive mark."""
    while block := file.read(_PADDING_BYTES):
        if start := len(block) - len(block.lstrip(b"\0")):
            offset += start
        if start < len(block):
            raise TrailingData(
                f"it has data after its end-of-archive mark, from byte {offset}, which is not read "
                "(archives that were joined by cat?): join tars with `tar --concatenate`"
            )


def _kind(entry: tarfile.TarInfo) -> str:
    if entry.issparse():
        return "sparse file"
    return "file" if entry.isreg() else _KINDS.get(entry.type, "entry of an unknown type")


class _Guarded:
    """A file for `tarfile` that refuses reads of implausible length."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)
