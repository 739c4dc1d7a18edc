"""Derives the names of classes from the labels of items."""

from __future__ import annotations

from collections.abc import Iterable

from data_pipelines.sources.base import MAX_LABELS, SourceError


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
