"""`process_shard` makes one shard: the unit of work and of retries for every launcher."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import representations
from data_pipelines.media import images
from data_pipelines.media.augment import Augment
from data_pipelines.preparation import listing
from data_pipelines.preparation.job import Job, read_job
from data_pipelines.preparation.read_ahead import Read, read_ahead
from data_pipelines.representations.base import Representation
from data_pipelines.shards import storage
from data_pipelines.shards.storage import Document, Reject
from data_pipelines.sources import Item, Source, open_source
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.files import StorageUnavailable

Progress = Callable[[int, int], None]
DEVICE_BATCH = 512  # media that are encoded together on a device
_REASON_CHARACTERS = 300
_REPORT_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class ShardSpec:
    """One shard to make, as JSON values.

    Attributes:
      folder: a folder that was set up (see `job.set_up`).
      job: the id of its job; if the folder was set up again since, the spec is refused.
      split: 'train' or 'eval'.
      index, count: index of this shard and number of shards of the split.
      retry_rejected: if the shard is finished, retry the images that it rejected.
    """

    folder: str
    job: str
    split: str
    index: int
    count: int
    retry_rejected: bool = False

    @property
    def name(self) -> str:
        return storage.stem(self.split, self.index, self.count)


def process_shard(spec: ShardSpec, progress: Progress | None = None) -> dict[str, Any]:
    """Makes one shard and returns its sidecar; a finished shard is not made again.

    The contents depend on the spec's folder only. An image that cannot be read, decoded or encoded
    is rejected with its reason; a source that is gone, or a shard that cannot be written, stops the
    job.

    Args:
      spec: the shard to make.
      progress: called with the numbers of documents made and rejected since the last call.

    Raises:
      WriteError: the disk is full.
      ShardError: the folder's own files are damaged.
      StorageUnavailable, SourceError: the source as a whole cannot be read.
    """
    context = open_job(spec.folder, spec.job)
    sidecar = storage.read_sidecar(spec.folder, spec.name)
    if sidecar is not None and sidecar.get("job") == spec.job:
        if not (spec.retry_rejected and sidecar["rejects"]):
            return sidecar
        earlier = _Earlier.load(spec, context.representation.token_dtype)
    else:
        earlier = _Earlier({}, None)
    items = listing.read(spec.folder, spec.name, context.job.facts["listing"][spec.name])
    copies = context.job.settings["copies"] if spec.split == "train" else 0
    rejects: list[Reject] = []
    make = _documents if context.representation.kind == "image" else _clips
    documents = make(context, items, copies, earlier, rejects, _Counter(progress))
    facts = {"job": spec.job, "split": spec.split, "index": spec.index, "name": spec.name}
    return storage.write_shard(
        spec.folder, spec.name, documents, rejects, facts, context.representation.token_dtype
    )


@dataclasses.dataclass(frozen=True)
class JobContext:
    """The objects that all shards of a job share, opened once per process."""

    job: Job
    source: Source
    representation: Representation
    augment: Augment

    @property
    def side(self) -> int | None:
        """The longer side in pixels that the representation resizes images to, if it is fixed."""
        size = self.representation.fixed_size
        return max(size) if size else None

    def document(self, medium: Any, key: str, copy: int, label: int, content: bytes) -> Document:
        """The document of a medium. Raises ValueError if it cannot be encoded."""
        return self._document(self.representation.encode(medium), key, copy, label, content)

    def documents(self, opened: Sequence[_Opened]) -> list[Document | Exception]:
        """The document of each, encoded together, or the error for which there is none."""
        media = [one.medium for one in opened if one.medium is not None]
        try:
            encoded: Iterator[Any] = iter(self.representation.encode_batch(media))
        except ValueError:  # one of them cannot be encoded
            encoded = map(self._tokens_or_error, media)
        found: list[Document | Exception] = []
        for one in opened:
            made = one.document or one.error or next(encoded)
            if isinstance(made, np.ndarray):
                item = one.item
                made = self._document(made, item.key, one.copy, item.label, one.content)
            found.append(made)
        return found

    def _tokens_or_error(self, medium: Any) -> np.ndarray | ValueError:
        try:
            return self.representation.encode(medium)
        except ValueError as error:
            return error

    def _document(
        self, tokens: np.ndarray, key: str, copy: int, label: int, content: bytes
    ) -> Document:
        size = self.representation.codec_bytes(tokens)
        return Document(tokens, key, copy, label, content, size)


@functools.lru_cache(maxsize=1)
def open_job(folder: str, job_id: str) -> JobContext:
    """Opens a set-up folder; cached. Raises ShardError if it does not match its job."""
    job = read_job(folder)
    if job is None or job.id != job_id:
        raise storage.ShardError(
            f"{folder} was set up again since this shard was assigned; run the command again"
        )
    representation = representations.load(folder)
    expected = job.facts["representation"]["fingerprint"]
    if representation.fingerprint != expected:
        raise storage.ShardError(
            f"{folder}: the stored representation has fingerprint {representation.fingerprint}, "
            f"expected {expected} as in job.json; restore its representation files"
        )
    versions = representation.encoder_versions
    if versions != job.facts["encoder"]:
        raise storage.ShardError(
            f"{folder} was set up with {job.facts['encoder']}, found {versions} here: another "
            "encoder may give other bytes; install the same versions, or use another folder"
        )
    options = Augment(**job.settings["augment"])
    source = open_source(job.settings["source"], representation.kind)
    return JobContext(job, source, representation, options)


@dataclasses.dataclass(frozen=True)
class _Earlier:
    """The finished shard that a retry starts from; its documents are copied."""

    records: dict[tuple[str, int], int]
    table: storage.Table | None = None
    reader: Any = None
    rejected: frozenset[str] = frozenset()  # keys
    dtype: Any = None

    @classmethod
    def load(cls, spec: ShardSpec, dtype: np.dtype) -> _Earlier:
        table = storage.TableReader(storage.table_path(spec.folder, spec.name)).load()
        reader = storage.open_records(storage.record_path(spec.folder, spec.name))
        columns = zip(table.images.tolist(), table.copies.tolist(), strict=True)
        records = {(table.keys[image], copy): n for n, (image, copy) in enumerate(columns)}
        rejects = storage.read_rejects(spec.folder, spec.name)
        rejected = frozenset(reject.key for reject in rejects)
        return cls(records, table, reader, rejected, dtype.newbyteorder("<"))

    def has(self, item: Item, copies: int) -> bool:
        """Whether the shard has an image and all its copies."""
        return all((item.key, copy) in self.records for copy in range(1 + copies))

    def clips(self, item: Item) -> list[Document]:
        """The clips of a video; [] if a part of it was rejected or it has none."""
        found: list[Document] = []
        while (item.key, 0) not in self.records:
            key = clip_key(item.key, len(found))
            document = self.document(key, 0)
            if key in self.rejected or item.key in self.rejected:
                return []
            if document is None:
                break
            found.append(document)
        return found

    def document(self, key: str, copy: int) -> Document | None:
        record = self.records.get((key, copy))
        if record is None or self.table is None:
            return None
        try:
            tokens = np.frombuffer(self.reader.read([record])[0], self.dtype)
        except RuntimeError:  # damaged: make it again
            return None
        image = int(self.table.images[record])
        content = self.table.content[image].tobytes()
        label, size = int(self.table.labels[image]), int(self.table.codec_bytes[record])
        return Document(tokens, key, copy, label, content, size)


def _documents(
    context: JobContext,
    items: list[Item],
    copies: int,
    earlier: _Earlier,
    rejects: list[Reject],
    counter: _Counter,
) -> Iterator[Document]:
    """Yields the documents of a shard, copies after their image; appends to `rejects`."""
    unique = list(_without_repeats(items, rejects, counter))
    failed = ""  # key of the image that failed, and so would its copies
    for one, made in _encoded(context, _to_open(context, unique, copies, earlier)):
        if one.item.key == failed:
            continue
        if isinstance(made, Document):
            yield made
            counter.add(1, 0)
            continue
        rejects.append(Reject(one.item.key, one.copy, _reason(made)))
        counter.add(0, 1 if one.copy else 1 + copies)
        failed = "" if one.copy else one.item.key
    counter.report()


@dataclasses.dataclass(frozen=True)
class _Opened:
    """An image, or a copy of it, before it is encoded: pixels, a finished document, or an error."""

    item: Item
    copy: int
    medium: Any = None
    content: bytes = b""
    document: Document | None = None
    error: Exception | None = None


_Open = Callable[[], _Opened]


def _to_open(
    context: JobContext, items: Sequence[Item], copies: int, earlier: _Earlier
) -> Iterator[_Open]:
    """Yields a function for each image and each copy of it, in order, which opens it."""
    for item, read in read_ahead(context.source, items, lambda item: not earlier.has(item, copies)):
        image = _Image(context, item, read)
        for copy in range(1 + copies):
            document = earlier.document(item.key, copy)
            if document is not None:
                yield functools.partial(_Opened, item, copy, document=document)
            else:
                yield functools.partial(image.opened, copy)


def _document_of(context: JobContext, one: _Opened) -> Document | Exception:
    """Encodes one; an error of one image must not affect the others."""
    item = one.item
    try:
        return context.document(one.medium, item.key, one.copy, item.label, one.content)
    except StorageUnavailable:
        raise
    except Exception as error:
        return error


def _encoded(
    context: JobContext, to_open: Iterable[_Open]
) -> Iterator[tuple[_Opened, Document | Exception]]:
    """Opens and encodes; for a device many at once, opened in threads while it encodes others."""
    if not context.representation.on_device:
        for open_one in to_open:
            one = open_one()
            yield one, one.document or one.error or _document_of(context, one)
        return
    functions = iter(to_open)
    with concurrent.futures.ThreadPoolExecutor(num_cpus()) as pool:

        def submit() -> list[concurrent.futures.Future[_Opened]]:
            return [pool.submit(each) for each in itertools.islice(functions, DEVICE_BATCH)]

        batch = submit()
        while batch:
            opened = [future.result() for future in batch]
            batch = submit()
            yield from zip(opened, context.documents(opened), strict=True)


def clip_key(key: str, number: int) -> str:
    """The key of a video's clip, by its number from 0."""
    return f"{key}#{number}"


def _clips(
    context: JobContext,
    items: list[Item],
    copies: int,
    earlier: _Earlier,
    rejects: list[Reject],
    counter: _Counter,
) -> Iterator[Document]:
    """Yields the documents of a shard of videos, each clip under its `clip_key`.

    A video that fails is one reject: under its own key if it gave no clip, else under the key of
    the clip that failed. The clips before it are kept.
    """
    assert not copies, "set_up refuses copies of clips"
    unique = list(_without_repeats(items, rejects, counter))
    for item, read in read_ahead(context.source, unique, lambda item: not earlier.clips(item)):
        number = 0
        if done := earlier.clips(item):
            yield from done
        else:
            try:
                data = read()
                for clip in context.representation.open(data):
                    key, content = clip_key(item.key, number), _content(data, number)
                    yield context.document(clip, key, 0, item.label, content)
                    number += 1
            except StorageUnavailable:
                raise
            except Exception as error:  # an error of one video must not affect the others
                key = clip_key(item.key, number) if number else item.key
                rejects.append(Reject(key, 0, _reason(error)))
                counter.add(0, 1)
                continue
        counter.add(1, 0)  # counts videos: their numbers of clips are not known in advance
    counter.report()


def _content(data: bytes, number: int = 0) -> bytes:
    """A hash of an image or video file and of the clip's number in it."""
    hashed = hashlib.sha256(data)
    if number:
        hashed.update(b"#%d" % number)
    return hashed.digest()[: storage.CONTENT_HASH_BYTES]


def _without_repeats(items: list[Item], rejects: list[Reject], counter: _Counter) -> Iterator[Item]:
    """Yields the first of items with equal keys and rejects the others."""
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            rejects.append(Reject(item.key, 0, "the source has another item with this key"))
            counter.add(0, 1)
        else:
            seen.add(item.key)
            yield item


class _Counter:
    """Counts documents and reports them a few times per second."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._made = self._rejected = 0
        self._due = time.monotonic() + _REPORT_SECONDS

    def add(self, made: int, rejected: int) -> None:
        self._made += made
        self._rejected += rejected
        if time.monotonic() >= self._due:
            self.report()

    def report(self) -> None:
        if self._progress is not None:
            self._progress(self._made, self._rejected)
        self._made = self._rejected = 0
        self._due = time.monotonic() + _REPORT_SECONDS


class _Image:
    """One image of the source, read and decoded at most once, on first use, by any thread."""

    def __init__(self, context: JobContext, item: Item, read: Read):
        self._context, self._item, self._read = context, item, read
        self._lock = threading.Lock()

    def opened(self, copy: int) -> _Opened:
        """The image, or an augmented copy of it; an error of one does not affect the others."""
        context, item = self._context, self._item
        try:
            with self._lock:
                content, image = self._decoded
                normalised = self._normalised if copy else None
            if normalised is not None:
                image = context.augment.apply(normalised, item.key, copy, context.side)
            if context.representation.on_device:  # many wait for it: in their final size
                image = context.representation.fit(image)
        except StorageUnavailable:
            raise
        except Exception as error:
            return _Opened(item, copy, error=error)
        return _Opened(item, copy, image, content)

    @functools.cached_property
    def _decoded(self) -> tuple[bytes, Image.Image]:
        data = self._read()
        (image,) = self._context.representation.open(data)
        return _content(data), image

    @functools.cached_property
    def _normalised(self) -> Image.Image:
        return images.normalise(self._decoded[1], self._context.representation.mode)


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # addresses differ between runs
    return text[:_REASON_CHARACTERS] or type(error).__name__
