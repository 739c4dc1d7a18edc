"""Finds images whose files are byte-identical; of each group only the smallest key is kept.

Shards are not rewritten: they contain every document, and the index drops the duplicates. The
choice depends on contents and keys only, so it is the same for any number of shards. It spans
splits: no image of the eval split has a duplicate in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.shards import storage

# The hash space is processed in slices of about this many images, about 300 MB of memory.
_IMAGES_AT_ONCE = 4_000_000

_Location = tuple[int, int]  # (shard, index in its table's images)


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """The duplicates to drop.

    Attributes:
      images: shard name -> indices in its table's images, uint32, sorted.
      lines: one {key, shard, kept} for each dropped image, sorted by key.
    """

    images: Mapping[str, np.ndarray]
    lines: Sequence[Mapping[str, Any]]


def find(
    folder: epath.PathLike,
    names: Sequence[str],
    num_images: int,
    images_at_once: int = _IMAGES_AT_ONCE,
) -> Duplicates:
    """Finds the duplicates among the images of the named shards, in bounded memory."""
    slices = min(256, -(-num_images // images_at_once) or 1)
    images: dict[str, list[int]] = {}
    lines: list[dict[str, Any]] = []
    for number in range(slices):
        groups = _groups(folder, names, number, slices)
        keys = _keys(folder, names, [location for group in groups for location in group])
        for group in groups:
            kept, *others = sorted(group, key=keys.__getitem__)
            for shard, row in others:
                images.setdefault(names[shard], []).append(row)
                line = {"key": keys[shard, row], "shard": names[shard], "kept": keys[kept]}
                lines.append(line)
    rows = {name: np.array(sorted(found), np.uint32) for name, found in images.items()}
    return Duplicates(rows, sorted(lines, key=lambda line: line["key"]))


def _groups(
    folder: epath.PathLike, names: Sequence[str], number: int, slices: int
) -> list[list[_Location]]:
    """Groups of images with equal content, for one slice of the hash space."""
    hashes, locations = [np.zeros((0, 2), np.uint64)], [np.zeros((0, 2), np.uint32)]
    for shard, name in enumerate(names):
        content = storage.TableReader(storage.table_path(folder, name)).column("content")
        rows = np.flatnonzero(content[:, 0].astype(np.int64) * slices // 256 == number)
        hashes.append(np.ascontiguousarray(content[rows]).view(np.uint64))
        locations.append(np.stack([np.full_like(rows, shard), rows], axis=1).astype(np.uint32))
    content, location = np.concatenate(hashes), np.concatenate(locations)
    order = np.lexsort((content[:, 1], content[:, 0]))
    content = content[order]
    same = (content[1:] == content[:-1]).all(axis=1)
    # A run of equal hashes starts where `same` becomes true and ends where it becomes false.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    runs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [
        [(shard, row) for shard, row in location[order[start : stop + 1]].tolist()]
        for start, stop in runs
    ]


def _keys(
    folder: epath.PathLike, names: Sequence[str], locations: Sequence[_Location]
) -> dict[_Location, str]:
    """Reads the keys of images, opening each shard once."""
    keys: dict[_Location, str] = {}
    column, opened = None, -1
    for shard, row in sorted(locations):
        if column is None or shard != opened:
            path = storage.table_path(folder, names[shard])
            column, opened = storage.TableReader(path).keys(), shard
        keys[shard, row] = column[row]
    return keys
