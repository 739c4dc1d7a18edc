"""Reads prepared shards: lengths and labels on opening, tokens in batches, keys on demand.

A folder of shards is complete when it has a `manifest.json`, which `prepare` writes last.
"""

from __future__ import annotations

import bisect
import collections
import functools
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from data_pipelines import representations
from data_pipelines.representations.base import Representation
from data_pipelines.shards import storage
from data_pipelines.shards.storage import ShardError
from data_pipelines.utils.compare import differences
from data_pipelines.utils.files import file_facts

MANIFEST = "manifest.json"
FORMAT = "token-shards/2"
_OPEN_FILES = 256
_OPEN_TABLES = 8


class DamagedShard(ShardError):
    """Stored bytes are damaged: `record` of the file `path`, -1 for the whole file."""

    def __init__(self, path: epath.PathLike, record: int, found: str):
        self.path, self.record = str(path), record
        part = f"record {record}" if record >= 0 else "the file"
        super().__init__(
            f"{self.path}: {part} is damaged ({found}); restore the file from a copy, or delete "
            "it and run prepare again to rebuild it, or read with on_damage='skip' (in training: "
            "--config.data.on_damage=skip)"
        )


class MismatchError(ValueError):
    """The shards hold another representation than expected."""


class Shards:
    """The documents of one split, ordered by (shard, record).

    Opening reads the manifest and one index; 10 million documents take 120 MB. Instances are
    thread-safe and can be pickled.

    Attributes:
      lengths: uint32 [N], tokens of each document without start and end token.
      codec_bytes: uint32 [N], bytes that the codec writes for each document.
      labels: int32 [N], index into `label_names`; -1 for none.
      label_names: names of the source's classes; empty if it has none.
      manifest: the manifest, see docs/data.md.
      damaged: documents rejected while reading with on_damage='skip', with the reason.
    """

    def __init__(self, folder: epath.PathLike, split: str = "train", on_damage: str = "stop"):
        """Opens a complete folder of shards.

        Args:
          folder: a folder that `prepare` wrote; local or `gs://`.
          split: 'train' or 'eval'.
          on_damage: 'stop' raises DamagedShard for a damaged document; 'skip' returns it empty and
            records it in `damaged`.

        Raises:
          FileNotFoundError: the folder has no complete set of shards.
          ShardError: the manifest or the index is damaged or has another format.
          ValueError: there is no such split.
        """
        if on_damage not in ("stop", "skip"):
            raise ValueError(f"on_damage is {on_damage!r}; expected 'stop' or 'skip'")
        self.folder = epath.Path(folder)
        self.split = split
        self.on_damage = on_damage
        self.manifest = read_manifest(self.folder)
        if split not in self.manifest["splits"]:
            have = ", ".join(self.manifest["splits"])
            raise ValueError(f"{self.folder} has no split {split!r}; it has: {have}")
        self.label_names: tuple[str, ...] = tuple(self.manifest["label_names"])
        self.damaged: dict[int, str] = {}
        part = self.manifest["splits"][split]
        self._names: list[str] = [shard["name"] for shard in part["shards"]]
        counts = [shard["documents"] for shard in part["shards"]]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        index = self._read_index(part["index"])
        self.lengths: np.ndarray = index["lengths"]
        self.codec_bytes: np.ndarray = index["codec_bytes"]
        self._dtype = np.dtype(self.manifest["token_dtype"]).newbyteorder("<")
        self.labels: np.ndarray = index["labels"]
        self._dropped = index["dropped"].astype(np.int64)
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._tables: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lost: set[int] = (
            set()
        )  # shards that could not be opened: reported once, not per record
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def representation(self) -> Representation:
        return representations.load(self.folder)

    @property
    def fingerprint(self) -> str:
        """The representation's fingerprint: shards of equal fingerprint may be mixed."""
        return self.manifest["representation"]["fingerprint"]

    @property
    def data_hash(self) -> str:
        """SHA-256 of the split: tokens, order, label and key of every document. 64 hex digits."""
        return self.manifest["splits"][self.split]["sha256"]

    def require(self, representation: Representation) -> None:
        """Raises MismatchError, with the differing options, for another representation."""
        if representation.fingerprint == self.fingerprint:
            return
        stored, expected = self.manifest["representation"]["config"], representation.to_config()
        differing = ", ".join(differences(stored, expected, "in the shards", "in the settings"))
        raise MismatchError(
            f"{self.folder} has representation {self.fingerprint}, expected "
            f"{representation.fingerprint}: {differing}. Prepare shards with these settings in "
            "another folder, or change the settings to those of the shards"
        )

    def key(self, document: int) -> str:
        """The source's key of the document's image."""
        images, _, keys = self._table(document)
        return keys[int(images[self.locate(document)[1]])]

    def copy(self, document: int) -> int:
        """0 for the image itself, 1, 2, ... for its augmented copies."""
        _, copies, _ = self._table(document)
        return int(copies[self.locate(document)[1]])

    def find(self, key: str, copy: int = 0) -> int:
        """The index of a document by key. Reads the keys of every shard. Raises KeyError."""
        for shard, name in enumerate(self._names):
            table = storage.TableReader(storage.table_path(self.folder, name))
            images, copies, keys = table.column("images"), table.column("copies"), table.keys()
            for record in range(len(images)):
                if copies[record] == copy and keys[int(images[record])] == key:
                    stored = int(self._starts[shard]) + record
                    before = int(np.searchsorted(self._dropped, stored))
                    if before < len(self._dropped) and self._dropped[before] == stored:
                        raise KeyError(f"{key!r} was dropped as a duplicate of another image")
                    return stored - before
        raise KeyError(f"there is no document {key!r}, copy {copy}, in split {self.split!r}")

    def locate(self, document: int) -> tuple[int, int]:
        """(shard, record) of a document."""
        if not 0 <= document < len(self):
            raise IndexError(f"there is no document {document}, expected 0 to {len(self) - 1}")
        stored = document
        if len(self._dropped):
            # The k-th dropped index minus k is the number of kept documents before it.
            kept_before = self._dropped - np.arange(len(self._dropped))
            stored += int(np.searchsorted(kept_before, document, side="right"))
        shard = bisect.bisect_right(self._starts, stored) - 1
        return shard, stored - int(self._starts[shard])

    def read(self, documents: Sequence[int]) -> list[np.ndarray]:
        """Reads the tokens of documents, `token_dtype` [length] each, in the order of `documents`.

        Each shard is read in one batch, which is about ten times faster than single reads. With
        on_damage='skip' a damaged document is returned empty.

        Raises:
          DamagedShard: a record or a whole file is damaged, with on_damage='stop'.
        """
        wanted: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        for index, document in enumerate(documents):
            shard, record = self.locate(int(document))
            wanted[shard].append((record, index))
        tokens: list[np.ndarray] = [np.zeros(0, self._dtype)] * len(documents)
        for shard, requests in wanted.items():
            requests.sort()
            records = self._read_records(shard, [record for record, _ in requests])
            for (record, index), stored in zip(requests, records, strict=True):
                tokens[index] = self._checked(shard, record, int(documents[index]), stored)
        return tokens

    def verify(self) -> Iterator[tuple[str, str]]:
        """Hashes every file of the split; yields (file name, error or '') for each."""
        part = self.manifest["splits"][self.split]
        index = part["index"]
        yield index["file"], self._compare(self.folder / index["file"], index)
        for shard in part["shards"]:
            records = storage.record_path(self.folder, shard["name"])
            table = storage.table_path(self.folder, shard["name"])
            yield records.name, self._compare(records, shard["records"])
            yield table.name, self._compare(table, shard["table"])

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_readers"], state["_tables"] = collections.OrderedDict(), collections.OrderedDict()
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _read_index(self, facts: dict[str, Any]) -> dict[str, np.ndarray]:
        path = self.folder / facts["file"]
        wrong = self._compare(path, facts)
        if wrong:
            raise ShardError(
                f"{path}: {wrong}; delete it and run prepare again: it "
                "rebuilds the index from the shards' tables"
            )
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def _compare(self, path: epath.Path, expected: dict[str, Any]) -> str:
        try:
            found = file_facts(path)
        except OSError as error:
            return f"cannot be read ({error})"
        if found["bytes"] != expected["bytes"]:
            return f"has {found['bytes']} bytes, expected {expected['bytes']}"
        if found["sha256"] != expected["sha256"]:
            return f"has SHA-256 {found['sha256'][:16]}.., expected {expected['sha256'][:16]}.."
        return ""

    def _read_records(self, shard: int, records: list[int]) -> list[bytes | str]:
        """The stored bytes of records; for a damaged record, the error as text."""
        try:
            reader = self._reader(shard)
        except DamagedShard as error:
            if self.on_damage == "stop":
                raise
            with self._lock:
                if shard not in self._lost:
                    logging.warning("rejected all documents of a shard: %s", error)
                self._lost.add(shard)
            return [str(error)] * len(records)
        try:
            return reader.read(records)
        except (RuntimeError, IndexError):
            return [_read_one(reader, record) for record in records]

    def _checked(self, shard: int, record: int, document: int, stored: bytes | str) -> np.ndarray:
        found = stored if isinstance(stored, str) else ""
        expected = self._dtype.itemsize * int(self.lengths[document])
        if not found and len(stored) != expected:
            found = f"{len(stored)} bytes, expected {expected}"
        if not found:
            return np.frombuffer(stored, self._dtype)  # type: ignore[arg-type]
        error = DamagedShard(storage.record_path(self.folder, self._names[shard]), record, found)
        if self.on_damage == "stop":
            raise error
        with self._lock:
            if document not in self.damaged and shard not in self._lost:
                logging.warning("rejected a document: %s", error)
            self.damaged[document] = str(error)
        return np.zeros(0, self._dtype)

    def _reader(self, shard: int) -> Any:
        """The shard's open reader; the least recently used ones are closed."""
        with self._lock:
            if shard in self._readers:
                self._readers.move_to_end(shard)
                return self._readers[shard]
        path = storage.record_path(self.folder, self._names[shard])
        try:
            reader = storage.open_records(path)
        except ShardError as error:
            raise DamagedShard(path, -1, str(error.__cause__)) from error
        expected = int(self._starts[shard + 1] - self._starts[shard])
        if reader.num_records() != expected:
            raise DamagedShard(path, -1, f"{reader.num_records()} records, expected {expected}")
        with self._lock:
            self._readers[shard] = reader
            while len(self._readers) > _OPEN_FILES:
                self._readers.popitem(last=False)  # closed when its last reference is gone
        return reader

    def _table(self, document: int) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
        shard = self.locate(document)[0]
        with self._lock:
            if shard in self._tables:
                self._tables.move_to_end(shard)
                return self._tables[shard]
        table = storage.TableReader(storage.table_path(self.folder, self._names[shard]))
        columns = table.column("images"), table.column("copies"), table.keys()
        with self._lock:
            self._tables[shard] = columns
            while len(self._tables) > _OPEN_TABLES:
                self._tables.popitem(last=False)
        return columns


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
    """Reads the manifest of a complete folder. Raises FileNotFoundError or ShardError."""
    path = epath.Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist: {folder} is not a complete folder of shards; make one with "
            "python -m data_pipelines.prepare"
        ) from None
    except ValueError as error:
        raise ShardError(
            f"{path}: is damaged ({error}); delete it and run prepare again to rebuild it"
        ) from error
    if manifest.get("format") != FORMAT:
        raise ShardError(f"{path}: format is {manifest.get('format')!r}, expected {FORMAT!r}")
    return manifest


def skipped_text(manifest: Mapping[str, Any]) -> str:
    """How many entries of the source were skipped, by kind, as in '4 (3 .heic, 1 hidden)'."""
    kinds = sorted(manifest["skipped"].items(), key=lambda pair: (-pair[1], pair[0]))
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
    return f"{sum(manifest['skipped'].values()):,}" + (f" ({listed})" if listed else "")


def _read_one(reader: Any, record: int) -> bytes | str:
    try:
        return reader.read([record])[0]
    except (RuntimeError, IndexError) as error:
        return str(error)
