"""Images whose files are equal byte for byte: all but the one with the smallest key are named.

Nothing is rewritten: the shards keep every document, and the index leaves the named ones out. The
choice depends on contents and keys alone, so it is the same for any number of shards and holds
across splits: no held-out image has its twin in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.shards import files

# Hashes are compared in slices of the hash space that hold about this many images: some 300 MB,
# however many images there are in all.
_IMAGES_AT_ONCE = 4_000_000

_Place = tuple[int, int]  # shard, row of its table's images


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """What to leave out.

    Attributes:
      images: shard name -> rows of its table's images, uint32, sorted.
      lines: one {key, shard, kept} for each image left out, sorted by key.
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
        keys = _keys(folder, names, [place for group in groups for place in group])
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
) -> list[list[_Place]]:
    """Groups of images with equal content, for contents in one slice of the hash space."""
    hashes, places = [np.zeros((0, 2), np.uint64)], [np.zeros((0, 2), np.uint32)]
    for shard, name in enumerate(names):
        content = files.TableReader(files.table_path(folder, name)).column("content")
        rows = np.flatnonzero(content[:, 0].astype(np.int64) * slices // 256 == number)
        hashes.append(np.ascontiguousarray(content[rows]).view(np.uint64))
        places.append(np.stack([np.full_like(rows, shard), rows], axis=1).astype(np.uint32))
    content, place = np.concatenate(hashes), np.concatenate(places)
    order = np.lexsort((content[:, 1], content[:, 0]))
    content = content[order]
    same = (content[1:] == content[:-1]).all(axis=1)
    # A run of equal hashes begins where `same` turns true and ends where it turns false.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    runs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [
        [(shard, row) for shard, row in place[order[start : stop + 1]].tolist()]
        for start, stop in runs
    ]


def _keys(
    folder: epath.PathLike, names: Sequence[str], places: Sequence[_Place]
) -> dict[_Place, str]:
    """The keys of images; each shard's are opened once."""
    keys: dict[_Place, str] = {}
    column, opened = None, -1
    for shard, row in sorted(places):
        if column is None or shard != opened:
            path = files.table_path(folder, names[shard])
            column, opened = files.TableReader(path).keys(), shard
        keys[shard, row] = column[row]
    return keys
