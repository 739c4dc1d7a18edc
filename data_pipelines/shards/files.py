"""One shard on disk: records of tokens, a table of them, a sidecar that vouches for both.

A shard named STEM is up to four files, written in this order, so that the last marks it done:

  STEM.array_record    one record a document: its tokens as little-endian uint16
  STEM.npz             the table (`Table`): lengths, labels, keys, copies, content hashes
  STEM.rejects.jsonl   what could not become a document, with its reason (absent if nothing)
  STEM.json            the sidecar: counts, sizes and SHA-256 of the others

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
from array_record.python import array_record_module
from etils import epath

from data_pipelines.utils.files import (
    cannot_write,
    file_facts,
    is_remote,
    read_json_lines,
    remove_unfinished,
    to_json,
    write_atomically,
)

# Codec bytes do not compress, and one record a group makes every document a random access.
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READER_BUFFER = 32_768
SPLITS = ("train", "eval")
CONTENT_HASH_BYTES = 16
_CHECK_EVERY = 256


class ShardError(RuntimeError):
    """A shard is not what was written."""


class Document(NamedTuple):
    """One document on its way into a shard.

    Attributes:
      tokens: uint16 [n], unframed.
      key: the source's key of the image.
      copy: 0 is the image itself, 1.. its augmented copies.
      label: index into the source's label names; -1 none.
      content: the first 16 bytes of the SHA-256 of the encoded image file.
    """

    tokens: np.ndarray
    key: str
    copy: int
    label: int
    content: bytes


class Reject(NamedTuple):
    """One image or copy that is not in the shards, and why."""

    key: str
    copy: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Table:
    """What is known of a shard's documents without reading them.

    Attributes:
      lengths: uint32 [documents], tokens without framing.
      images: uint32 [documents], row of the document's image in the three columns below.
      copies: uint16 [documents], 0 is the image itself.
      labels: int32 [images], -1 none.
      content: uint8 [images, 16], leading bytes of the SHA-256 of the image file.
      keys: the source's keys [images].
    """

    lengths: np.ndarray
    images: np.ndarray
    copies: np.ndarray
    labels: np.ndarray
    content: np.ndarray
    keys: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """An .npz without pickled objects; equal tables give equal bytes."""
        encoded = [key.encode() for key in self.keys]
        offsets = np.zeros(len(encoded) + 1, np.uint64)
        np.cumsum([len(key) for key in encoded], out=offsets[1:])
        buffer = io.BytesIO()
        np.savez(
            buffer,
            lengths=self.lengths,
            images=self.images,
            copies=self.copies,
            labels=self.labels,
            content=self.content,
            key_offsets=offsets,
            key_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        )
        return buffer.getvalue()


class TableReader:
    """A shard's table read column by column: keys are not touched until they are asked for."""

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)

    def column(self, name: str) -> np.ndarray:
        """One column of `Table` by name. Raises ShardError if the file is missing or damaged."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return arrays[name]
        except Exception as error:  # zipfile, numpy and the file system each raise their own
            raise ShardError(
                f"{self._path}: the table's column '{name}' cannot be read ({error}); restore the "
                "file, or delete the shard's .json and run prepare again to rebuild the shard"
            ) from error

    def keys(self) -> KeyColumn:
        return KeyColumn(self.column("key_offsets"), self.column("key_bytes").tobytes())

    def load(self) -> Table:
        plain = ("lengths", "images", "copies", "labels", "content")
        return Table(**{name: self.column(name) for name in plain}, keys=tuple(self.keys()))


@dataclasses.dataclass(frozen=True)
class KeyColumn(Sequence[str]):
    """Keys held as one blob: about their UTF-8 size in memory, however many they are."""

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
    """Grows a table document by document; the copies of an image must follow each other."""

    def __init__(self) -> None:
        self._lengths: list[int] = []
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
        self._images.append(len(self._keys) - 1)
        self._copies.append(document.copy)

    def table(self) -> Table:
        content = np.frombuffer(b"".join(self._content), np.uint8)
        return Table(
            lengths=np.array(self._lengths, np.uint32),
            images=np.array(self._images, np.uint32),
            copies=np.array(self._copies, np.uint16),
            labels=np.array(self._labels, np.int32),
            content=content.reshape(len(self._keys), CONTENT_HASH_BYTES),
            keys=tuple(self._keys),
        )


def stem(split: str, index: int, count: int) -> str:
    """'train-00003-of-00016'."""
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
LASTING = (record_path, table_path, sidecar_path)


def write_shard(
    folder: epath.PathLike,
    name: str,
    documents: Iterable[Document],
    rejects: Sequence[Reject],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Writes one whole shard and returns its sidecar.

    The records go to a temporary name, are closed, reopened, counted and hashed, and take their
    final name only then; the sidecar comes last. A process killed at any point leaves either a
    shard with its sidecar or none that counts as done.

    Args:
      folder: local or remote (`gs://`); a remote shard is built in a local scratch folder first.
      name: see `stem`.
      documents: consumed once; only one is held at a time. Copies of an image are consecutive.
      rejects: read after `documents` is exhausted, so its producer may still append to it.
      facts: plain JSON values to store in the sidecar beside the counts.

    Raises:
      WriteError: the disk is full.
      ShardError: the file read back is not what was written.
    """
    folder = epath.Path(folder)
    _remove_unfinished(folder, name)
    builder = _TableBuilder()
    with _scratch(folder) as scratch:
        temporary = scratch / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            _write_records(temporary, documents, builder)
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
        "rejects": len(rejects),
        "records": records,
        "table": {"bytes": len(table_bytes), "sha256": hashlib.sha256(table_bytes).hexdigest()},
    }
    write_atomically(sidecar_path(folder, name), to_json(sidecar))
    return sidecar


def read_sidecar(folder: epath.PathLike, name: str) -> dict[str, Any] | None:
    """The sidecar of a finished shard; None if it is not finished.

    A sidecar whose shard is gone or has another size does not count: the shard is made again.
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
    """Opens a file of records for random access. Raises ShardError, naming the file."""
    try:
        return array_record_module.ArrayRecordReader(
            os.fspath(path), READER_OPTIONS, file_reader_buffer_size=READER_BUFFER
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ShardError(f"{os.fspath(path)}: cannot be opened ({error})") from error


def _write_records(path: epath.Path, documents: Iterable[Document], builder: _TableBuilder) -> None:
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), WRITER_OPTIONS)
    try:
        for number, document in enumerate(documents):
            writer.write(np.ascontiguousarray(document.tokens, "<u2").tobytes())
            builder.add(document)
            # A failed writer swallows records silently until it is closed: stop early instead.
            if number % _CHECK_EVERY == 0 and not writer.ok():
                break
        writer.close()
    except RuntimeError as error:
        raise cannot_write(path, error) from error


def _check_count(path: epath.Path, expected: int) -> None:
    reader = open_records(path)
    found = reader.num_records()
    reader.close()
    if found != expected:
        raise ShardError(
            f"{path}: {found} records read back where {expected} were written; the disk may be "
            "full or failing; run the same command again"
        )


def _move(local: epath.Path, final: epath.Path) -> None:
    if is_remote(final):
        local.copy(final, overwrite=True)
        return
    with open(local, "rb") as file:
        os.fsync(file.fileno())
    os.replace(local, final)


def _remove_unfinished(folder: epath.Path, name: str) -> None:
    """Takes away the shard's sidecar first, then what a killed attempt left."""
    sidecar_path(folder, name).unlink(missing_ok=True)
    rejects_path(folder, name).unlink(missing_ok=True)
    remove_unfinished(folder, f".{name}.*")


@contextlib.contextmanager
def _scratch(folder: epath.Path) -> Iterator[epath.Path]:
    """Where records are written: the folder itself, or a local one for a remote folder."""
    if is_remote(folder):
        with tempfile.TemporaryDirectory() as local:
            yield epath.Path(local)
    else:
        yield folder
