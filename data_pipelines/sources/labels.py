"""Derives the names of classes from the labels of items, and reports doubtful ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from data_pipelines.sources.base import MAX_LABELS, SourceError

_SPLITS = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing")
)
# Folders of pictures that are data about other pictures.
_ANNOTATIONS = frozenset(
    (
        *("mask", "masks", "depth", "depths", "depth_maps", "segmentation", "segmentations"),
        *("annotation", "annotations", "trimap", "trimaps", "normals"),
    )
)


def same_name(name: str) -> str:
    """A form that is equal for names that differ in case or in Unicode composition only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def doubts(names: Sequence[str], split_source: str) -> Iterator[str]:
    """Yields a sentence about each property of class names that suggests a mistake.

    Args:
      names: of the classes.
      split_source: what to read instead if the names are those of splits.
    """
    splits = [name for name in names if name.casefold() in _SPLITS]
    if splits and (len(splits) == len(names) or len(splits) > 1):
        yield (
            f"the classes include {', '.join(map(repr, splits))}, which look like splits of a data "
            f"set; to read one split with its own classes, use {split_source}"
        )
    if annotations := [name for name in names if name.casefold() in _ANNOTATIONS]:
        yield (
            f"the classes include {', '.join(map(repr, annotations))}, which look like data about "
            "other pictures; each picture becomes a document of that class"
        )
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(same_name(name), name)
        if other != name:
            yield f"the classes {other!r} and {name!r} differ in case or accents' encoding only"


def mixed_splits(names: Iterable[str]) -> Iterator[str]:
    """Yields a sentence if files are named after several splits, as `train-0.tar`, `test-0.tar`."""
    words = {re.split(r"[^a-z]", name.rpartition("/")[2].casefold())[0] for name in names}
    if len(splits := sorted(words & _SPLITS)) > 1:
        yield (
            f"the files belong to several splits by their names ({', '.join(splits)}) and are read "
            "as one; to read a single split, name it in the pattern"
        )


def class_names(labels: Iterable[int | str], spec: str) -> tuple[str, ...]:
    """Class names by label: "0", "1", ... for numeric labels, else the names, sorted.

    A label of -1 means none. Raises SourceError if numbers and names are mixed, or if there are
    more than MAX_LABELS.
    """
    names: set[str] = set()
    largest = -1
    for label in labels:
        if isinstance(label, str):
            names.add(label)
        else:
            largest = max(largest, label)
        if max(len(names), largest) >= MAX_LABELS:
            raise SourceError(f"{spec} has more than {MAX_LABELS:,} labels: not classes")
    if names and largest >= 0:
        raise SourceError(
            f"{spec} has labels by number ({largest}) and by name ({min(names)!r}), "
            "expected one kind"
        )
    return tuple(sorted(names)) or tuple(str(label) for label in range(largest + 1))
