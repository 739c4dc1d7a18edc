"""One shard on disk: records of tokens, a table of documents, and a sidecar with hashes.

A shard named STEM has up to four files. The sidecar is written last and marks the shard as done:

  STEM.array_record    one record per document: its tokens, little-endian `token_dtype`
  STEM.npz             the table (`Table`): lengths, labels, keys, copies, content hashes
  STEM.rejects.jsonl   rejected images and copies, with reasons (absent if there are none)
  STEM.json            the sidecar: counts, sizes and SHA-256 of the other files

docs/data.md documents every field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from array_record.python import array_record_module
from etils import epath

from data_pipelines.utils.files import (
    StorageUnavailable,
    cannot_write,
    file_facts,
    is_remote,
    read_json_lines,
    remove_unfinished,
    to_json,
    write_atomically,
)

# Codec bytes do not compress further; one record per group allows random access to documents.
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READER_BUFFER = 32_768
SPLITS = ("train", "eval")
CONTENT_HASH_BYTES = 16
_CHECK_EVERY = 256


class ShardError(RuntimeError):
    """A shard is damaged or does not match its manifest."""


class Document(NamedTuple):
    """One document to write.

    Attributes:
      tokens: integer [n], without start and end token.
      key: the source's key of the image.
      copy: 0 for the image itself, 1, 2, ... for its augmented copies.
      label: index into the source's label names; -1 for none.
      content: the first 16 bytes of the SHA-256 of the encoded image file.
      codec_bytes: bytes that the codec writes for it, see `Representation.codec_bytes`.
    """

    tokens: np.ndarray
    key: str
    copy: int
    label: int
    content: bytes
    codec_bytes: int = 0


class Reject(NamedTuple):
    """One image or copy that was rejected, with the reason."""

    key: str
    copy: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Table:
    """The metadata of a shard's documents.

    Attributes:
      lengths: uint32 [documents], tokens without start and end token.
      codec_bytes: uint32 [documents], bytes that the codec writes for each.
      images: uint32 [documents], index of the document's image in labels, content and keys.
      copies: uint16 [documents], 0 for the image itself.
      labels: int32 [images], -1 for none.
      content: uint8 [images, 16], leading bytes of the SHA-256 of the image file.
      keys: the source's keys [images].
    """

    lengths: np.ndarray
    codec_bytes: np.ndarray
    images: np.ndarray
    copies: np.ndarray
    labels: np.ndarray
    content: np.ndarray
    keys: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Encodes the table as .npz without pickled objects; equal tables give equal bytes."""
        encoded = [key.encode() for key in self.keys]
        offsets = np.zeros(len(encoded) + 1, np.uint64)
        np.cumsum([len(key) for key in encoded], out=offsets[1:])
        buffer = io.BytesIO()
        np.savez(
            buffer,
            lengths=self.lengths,
            codec_bytes=self.codec_bytes,
            images=self.images,
            copies=self.copies,
            labels=self.labels,
            content=self.content,
            key_offsets=offsets,
            key_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        )
        return buffer.getvalue()


class TableReader:
    """Reads a shard's table column by column, so that keys are read only when needed."""

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)

    def column(self, name: str) -> np.ndarray:
        """Reads one column of `Table`. Raises ShardError if the file is missing or damaged."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return arrays[name]
        except Exception as error:  # zipfile, numpy and the file system raise different types
            raise ShardError(
                f"{self._path}: the table's column '{name}' cannot be read ({error}); restore the "
                "file, or delete the shard's .json and run prepare again to rebuild the shard"
            ) from error

    def keys(self) -> KeyColumn:
        return KeyColumn(self.column("key_offsets"), self.column("key_bytes").tobytes())

    def load(self) -> Table:
        plain = ("lengths", "codec_bytes", "images", "copies", "labels", "content")
        return Table(**{name: self.column(name) for name in plain}, keys=tuple(self.keys()))


@dataclasses.dataclass(frozen=True)
class KeyColumn(Sequence[str]):
    """Keys as one UTF-8 blob with offsets, which takes less memory than a list of str."""

    offsets: np.ndarray
    blob: bytes

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, image: Any) -> Any:
        if isinstance(image, slice):
            return [self[i] for i in range(*image.indices(len(self)))]
        if not 0 <= image < len(self):
            raise IndexError(image)
        start, stop = int(self.offsets[image]), int(self.offsets[image + 1])
        return self.blob[start:stop].decode()


class _TableBuilder:
    """Builds a table document by document; the copies of an image must be consecutive."""

    def __init__(self) -> None:
        self._lengths: list[int] = []
        self._codec_bytes: list[int] = []
        self._images: list[int] = []
        self._copies: list[int] = []
        self._labels: list[int] = []
        self._content: list[bytes] = []
        self._keys: list[str] = []

    def add(self, document: Document) -> None:
        if not self._keys or self._keys[-1] != document.key:
            self._keys.append(document.key)
            self._labels.append(document.label)
            self._content.append(document.content)
        self._lengths.append(len(document.tokens))
        self._codec_bytes.append(document.codec_bytes)
        self._images.append(len(self._keys) - 1)
        self._copies.append(document.copy)

    def table(self) -> Table:
        content = np.frombuffer(b"".join(self._content), np.uint8)
        return Table(
            lengths=np.array(self._lengths, np.uint32),
            codec_bytes=np.array(self._codec_bytes, np.uint32),
            images=np.array(self._images, np.uint32),
            copies=np.array(self._copies, np.uint16),
            labels=np.array(self._labels, np.int32),
            content=content.reshape(len(self._keys), CONTENT_HASH_BYTES),
            keys=tuple(self._keys),
        )


def stem(split: str, index: int, count: int) -> str:
    """The name of a shard, as in 'train-00003-of-00016'."""
    return f"{split}-{index:05d}-of-{count:05d}"


def record_path(folder: epath.PathLike, name: str) -> epath.Path:
    return epath.Path(folder) / f"{name}.array_record"


def table_path(folder: epath.PathLike, name: str) -> epath.Path:
    return epath.Path(folder) / f"{name}.npz"


def rejects_path(folder: epath.PathLike, name: str) -> epath.Path:
    return epath.Path(folder) / f"{name}.rejects.jsonl"


def sidecar_path(folder: epath.PathLike, name: str) -> epath.Path:
    return epath.Path(folder) / f"{name}.json"


# Every finished shard has these files.
REQUIRED_FILES = (record_path, table_path, sidecar_path)


def write_shard(
    folder: epath.PathLike,
    name: str,
    documents: Iterable[Document],
    rejects: Sequence[Reject],
    facts: dict[str, Any],
    dtype: npt.DTypeLike = np.uint16,
) -> dict[str, Any]:
    """Writes one shard and returns its sidecar.

    Records are written under a temporary name, read back, counted and hashed, and then renamed; the
    sidecar is written last. If the process is killed, the shard is either finished or has no
    sidecar, and is then made again.

    Args:
      folder: local or remote (`gs://`); a remote shard is built in a local temporary folder first.
      name: see `stem`.
      documents: consumed once, one at a time. Copies of an image must be consecutive.
      rejects: read after `documents` is exhausted, so its producer may append to it.
      facts: JSON values to store in the sidecar in addition to the counts.
      dtype: of the stored tokens, see `Representation.token_dtype`.

    Raises:
      WriteError: the disk is full.
      ShardError: the file read back differs from what was written.
    """
    folder = epath.Path(folder)
    _remove_unfinished(folder, name)
    builder = _TableBuilder()
    with _scratch(folder) as scratch:
        temporary = scratch / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            _write_records(temporary, documents, np.dtype(dtype), builder)
            table = builder.table()
            _check_count(temporary, len(table.lengths))
            records = file_facts(temporary)
            table_bytes = table.to_bytes()
            _move(temporary, record_path(folder, name))
        finally:
            temporary.unlink(missing_ok=True)
    write_atomically(table_path(folder, name), table_bytes)
    if rejects:
        write_atomically(rejects_path(folder, name), rejects_to_bytes(rejects))
    sidecar = {
        **facts,
        "documents": len(table.lengths),
        "images": len(table.keys),
        "tokens": int(table.lengths.sum(dtype=np.uint64)),
        "token_dtype": np.dtype(dtype).name,
        "rejects": len(rejects),
        "records": records,
        "table": {"bytes": len(table_bytes), "sha256": hashlib.sha256(table_bytes).hexdigest()},
    }
    write_atomically(sidecar_path(folder, name), to_json(sidecar))
    return sidecar


def read_sidecar(folder: epath.PathLike, name: str) -> dict[str, Any] | None:
    """Reads the sidecar of a finished shard; None if the shard is not finished.

    A shard whose files are missing or have another size than stated is not finished.
    """
    try:
        sidecar = json.loads(sidecar_path(folder, name).read_text())
        size = record_path(folder, name).stat().length
        table = table_path(folder, name).stat().length
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    whole = (size, table) == (sidecar["records"]["bytes"], sidecar["table"]["bytes"])
    return sidecar if whole else None


def read_rejects(folder: epath.PathLike, name: str) -> list[Reject]:
    path = rejects_path(folder, name)
    if not path.exists():
        return []
    return [Reject(**line) for line in read_json_lines(path.read_bytes())]


def rejects_to_bytes(rejects: Iterable[Reject]) -> bytes:
    return b"".join(to_json(reject._asdict(), indent=None) for reject in rejects)


def open_records(path: epath.PathLike) -> array_record_module.ArrayRecordReader:
    """Opens a file of records for random access. Raises ShardError if it cannot be opened."""
    try:
        return array_record_module.ArrayRecordReader(
            os.fspath(path), READER_OPTIONS, file_reader_buffer_size=READER_BUFFER
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ShardError(f"{os.fspath(path)}: cannot be opened ({error})") from error


def _write_records(
    path: epath.Path, documents: Iterable[Document], dtype: np.dtype, builder: _TableBuilder
) -> None:
    stored = dtype.newbyteorder("<")
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), WRITER_OPTIONS)
    try:
        for number, document in enumerate(documents):
            writer.write(np.ascontiguousarray(document.tokens, stored).tobytes())
            builder.add(document)
            # A failed writer ignores records silently until it is closed: stop early.
            if number % _CHECK_EVERY == 0 and not writer.ok():
                break
        writer.close()
    except StorageUnavailable:
        raise  # of the source of the documents
    except RuntimeError as error:
        raise cannot_write(path, error) from error


def _check_count(path: epath.Path, expected: int) -> None:
    reader = open_records(path)
    found = reader.num_records()
    reader.close()
    if found != expected:
        raise ShardError(
            f"{path}: found {found} records, expected the {expected} that were written; the disk "
            "may be full or failing: run the same command again"
        )


def _move(local: epath.Path, final: epath.Path) -> None:
    if is_remote(final):
        local.copy(final, overwrite=True)
        return
    with open(local, "rb") as file:
        os.fsync(file.fileno())
    os.replace(local, final)


def _remove_unfinished(folder: epath.Path, name: str) -> None:
    """Removes the shard's sidecar first, then the files of a killed attempt."""
    sidecar_path(folder, name).unlink(missing_ok=True)
    rejects_path(folder, name).unlink(missing_ok=True)
    remove_unfinished(folder, f".{name}.*")


@contextlib.contextmanager
def _scratch(folder: epath.Path) -> Iterator[epath.Path]:
    """The folder to write records to: the folder itself, or a local one if it is remote."""
    if is_remote(folder):
        with tempfile.TemporaryDirectory() as local:
            yield epath.Path(local)
    else:
        yield folder
