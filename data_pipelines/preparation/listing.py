"""Lists the source and assigns each item to a split and a shard, by hashes of names.

The listing of 10 million images takes a few gigabytes of JSON lines on disk and a bounded buffer in
memory: items are spooled to one file, counted, then distributed to one file per shard.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.media import Kind
from data_pipelines.shards import storage
from data_pipelines.sources.base import Item, Source
from data_pipelines.utils.files import file_facts, is_remote, read_json_lines, to_json

FOLDER = "listing"
REJECTS = "rejects"
# Maximum number of images or videos of a shard: large enough to read efficiently from a bucket
# (80 MB of 256x256 images, 25 MB or more of clips), small enough that a killed worker loses only
# minutes.
_MAX_FILES: dict[Kind, int] = {"image": 16_384, "video": 1024}
_MIN_FILES: dict[Kind, int] = {"image": 256, "video": 4}
_MAX_SMALL_SHARDS = 16  # shards of _MIN_FILES or more that a small source is divided into
BUFFER_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Listing:
    """A written listing; `facts` (num_shards, items, listing, rejected, ...) go into job.json."""

    folder: epath.Path
    facts: Mapping[str, Any]

    def names(self, split: str) -> list[str]:
        count = self.facts["num_shards"].get(split, 0)
        return [storage.stem(split, index, count) for index in range(count)]


def write(
    source: Source, folder: epath.PathLike, *, copies: int, eval_fraction: float, num_shards: int
) -> Listing:
    """Lists the source into FOLDER/listing, one file of JSON lines per shard.

    The files of a killed listing are replaced: they become valid with the hashes in `job.json`.
    """
    folder = epath.Path(folder)
    with tempfile.TemporaryDirectory(
        prefix=".listing.", suffix=".tmp", dir=_scratch_parent(folder)
    ) as scratch:
        spool = os.path.join(scratch, "spool")
        counts = _spool(source, spool, eval_fraction)
        chosen = num_shards or choose_num_shards(counts["train"] * (1 + copies), source.kind)
        num = {"train": chosen}
        if counts["eval"]:
            num["eval"] = max(1, round(chosen * eval_fraction))
        parts = os.path.join(scratch, FOLDER)
        os.mkdir(parts)
        _distribute(spool, parts, num)
        os.remove(spool)
        rejects = [storage.Reject(r.key, 0, r.reason) for r in source.rejects]
        with open(os.path.join(parts, f"{REJECTS}.jsonl"), "wb") as file:
            file.write(storage.rejects_to_bytes(rejects))
        facts = {name: _facts(os.path.join(parts, f"{name}.jsonl")) for name in _all_names(num)}
        _publish(parts, folder / FOLDER)
    return Listing(
        folder,
        {
            "num_shards": num,
            "items": counts,
            "listing": facts,
            "rejected": len(rejects),
            "skipped": dict(source.skipped),
            "warnings": list(source.warnings),
        },
    )


def read(folder: epath.PathLike, name: str, facts: Mapping[str, Any]) -> list[Item]:
    """Reads the items of one shard, in the order of the source's listing.

    Raises ShardError if the file is not the one that was written.
    """
    path = _path(folder, name)
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise storage.ShardError(
            f"{path}: is missing or damaged; delete {epath.Path(folder) / 'job.json'} and run "
            "prepare again to list the source again"
        )
    return [Item(*line) for line in read_json_lines(data)]


def read_rejects(folder: epath.PathLike) -> list[storage.Reject]:
    """Entries of the source that were rejected while listing it."""
    path = _path(folder, REJECTS)
    lines = read_json_lines(path.read_bytes()) if path.exists() else []
    return [storage.Reject(**line) for line in lines]


def choose_num_shards(files: int, kind: Kind) -> int:
    """Shards of about 16,384 images (including copies) or 1,024 videos.

    Small sources get up to 16 smaller shards, so that every core has work.
    """
    small = min(_MAX_SMALL_SHARDS, files // _MIN_FILES[kind])
    return max(1, small, math.ceil(files / _MAX_FILES[kind]))


def _spool(source: Source, path: str, eval_fraction: float) -> dict[str, int]:
    """Writes a line 'split hash item' for each item; counts them by split.

    The hash of an item's key decides its split, so equal keys and fractions give the same eval
    split in every preparation. The hash of its unit decides its shard, so that a unit is read for
    one shard only (see `Source.unit`).
    """
    counts = {"train": 0, "eval": 0}
    with open(path, "wb") as file:
        for item in source.items():
            split = "eval" if _hash(item.key) < eval_fraction * 2**64 else "train"
            counts[split] += 1
            file.write(f"{split} {_hash('unit ' + source.unit(item))} ".encode())
            file.write(to_json(list(item), indent=None))
    return counts


def _hash(text: str) -> int:
    """64 bits, uniformly distributed and equal on every platform."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _distribute(spool: str, parts: str, num: Mapping[str, int]) -> None:
    buffers: dict[str, list[bytes]] = collections.defaultdict(list)
    buffered = 0
    with open(spool, "rb") as file:
        for line in file:
            split, number, item = line.split(b" ", 2)
            count = num[split.decode()]
            name = storage.stem(split.decode(), int(number) % count, count)
            buffers[name].append(item)
            buffered += len(item)
            if buffered > BUFFER_BYTES:
                _flush(buffers, parts)
                buffered = 0
    _flush(buffers, parts)
    for name in _all_names(num):  # also for a shard without images
        open(os.path.join(parts, f"{name}.jsonl"), "ab").close()


def _flush(buffers: dict[str, list[bytes]], parts: str) -> None:
    for name, lines in buffers.items():
        with open(os.path.join(parts, f"{name}.jsonl"), "ab") as file:
            file.writelines(lines)
    buffers.clear()


def _all_names(num: Mapping[str, int]) -> Iterator[str]:
    for split, count in num.items():
        for index in range(count):
            yield storage.stem(split, index, count)


def _facts(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        items = sum(1 for _ in file)
    return {"items": items, "sha256": file_facts(path)["sha256"]}


def _path(folder: epath.PathLike, name: str) -> epath.Path:
    return epath.Path(folder) / FOLDER / f"{name}.jsonl"


def _scratch_parent(folder: epath.Path) -> str | None:
    """Folder for temporary files: the shards' own, or the system's if that is remote."""
    return None if is_remote(folder) else os.fspath(folder)


def _publish(parts: str, final: epath.Path) -> None:
    if final.exists():
        final.rmtree()
    if not is_remote(final):
        os.replace(parts, final)
        return
    final.mkdir(parents=True)
    for path in epath.Path(parts).iterdir():
        path.copy(final / path.name)
