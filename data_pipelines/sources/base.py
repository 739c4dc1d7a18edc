"""The interface of sources: a cheap listing, and random access by locator.

A source returns the *encoded* bytes of an image or video file and never decodes them. A file that
does not decode is found and rejected later, by preparation.
"""

from __future__ import annotations

import abc
import collections
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from data_pipelines.media import Kind

# A larger file is not one image or clip. The largest plausible TIFF of 2**28 pixels fits.
MAX_MEDIUM_BYTES = 2**30

# Each class needs a token id; ids are uint16 and shared with bytes and special tokens.
MAX_LABELS = 2**15

# Kinds of skipped entries that are counted separately; the rest share one counter, which bounds
# the memory for a folder with a million different suffixes.
_MAX_SKIPPED_KINDS = 64

Locator = str | int | tuple[Any, ...] | list[Any]


class SourceError(ValueError):
    """A source, or one item of it, cannot be read; the message is one sentence."""


class Item(NamedTuple):
    """One image or video of a source.

    Attributes:
      key: name, unique in the source, stable between runs, and valid Unicode.
      locator: JSON values from which `read` finds the item, in any process.
      label: class, an index into `label_names`; -1 for none.
    """

    key: str
    locator: Locator
    label: int = -1


class Reject(NamedTuple):
    """One entry of a source that was rejected while listing, with the reason."""

    key: str
    reason: str


class Source(abc.ABC):
    """A set of images or videos. Made by `open_source(spec, kind)`; pickles as these two values.

    Attributes:
      kind: "image" or "video".
      rejects: entries that should have been images or videos but cannot be used, with the reason.
      skipped: number of entries that were not asked for, by kind (a suffix, "hidden", ...).
      warnings: choices and doubts that a reader should know of, one sentence each.

    `rejects`, `skipped` and `warnings` describe the latest pass over `items()`, up to its current
    item.
    """

    scheme: ClassVar[str]
    # How the images of this source get labels, for the error about a source without any.
    label_advice: str = ""

    def __init__(self, argument: str = "", kind: Kind = "image") -> None:
        self.argument, self.kind = argument, kind
        self.rejects: list[Reject] = []
        self.skipped: collections.Counter[str] = collections.Counter()
        self.warnings: list[str] = []

    @property
    def spec(self) -> str:
        """The spec from which `open_source` makes an equal source."""
        return f"{self.scheme}:{self.argument}" if self.argument else self.scheme

    @property
    @abc.abstractmethod
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, by label; empty for an unlabelled source."""

    @abc.abstractmethod
    def _list(self) -> Iterator[Item]:
        """Yields the items in order; calls `_reject` and `_skip` for the other entries."""

    @abc.abstractmethod
    def read(self, locator: Locator) -> bytes:
        """Reads the encoded file of an item by its locator (which may have been through JSON).

        Raises:
          SourceError: the item is missing, damaged, not readable or too large.
          StorageUnavailable: the source is gone or does not answer.
        """

    def unit(self, item: Item) -> str:
        """The name of the storage unit that must be read sequentially to read an item.

        Items of one unit should be read together, in order. With random access each item is its own
        unit, named by its key.
        """
        return item.key

    def items(self) -> Iterator[Item]:
        """Lists the source without decoding anything, in the same order every time.

        Raises:
          SourceError: at the end, if there was no item.
          StorageUnavailable: the source is gone or does not answer.
        """
        self.rejects = []
        self.skipped = collections.Counter()
        self.warnings = []
        empty = True
        for item in self._list():
            empty = False
            yield item
        if empty:
            raise SourceError(self._nothing_found())

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files and caches are not pickled: each process opens its own.
        return type(self), (self.argument, self.kind)

    def __repr__(self) -> str:
        return f"open_source({self.spec!r})"

    def _reject(self, key: str, reason: str) -> None:
        reason = reason.encode("utf-8", "backslashreplace").decode()
        self.rejects.append(Reject(printable(key), reason))

    def _skip(self, kind: str) -> None:
        known = kind in self.skipped or len(self.skipped) < _MAX_SKIPPED_KINDS
        self.skipped[kind if known else "other kinds"] += 1

    def _warn(self, text: str) -> None:
        self.warnings.append(text.encode("utf-8", "backslashreplace").decode())

    def _nothing_found(self) -> str:
        found = [f"{count} {printable(kind)}" for kind, count in self.skipped.most_common(5)]
        if self.rejects:
            first = self.rejects[0]
            found.append(f"{len(self.rejects)} rejected, the first {first.key!r}: {first.reason}")
        return f"{self.spec} holds no {self.kind}" + (
            f" (found: {', '.join(found)})" if found else ""
        )


def printable(name: str) -> str:
    r"""Escapes a name from the file system into valid Unicode, reversibly.

    Python represents bytes of a name that are not UTF-8 by lone surrogates, which neither JSON
    readers nor `str.encode` accept. They become `\xNN`, and a backslash becomes two.
    """
    if name.isascii() and "\\" not in name:
        return name
    name = name.replace("\\", "\\\\")
    return "".join(
        f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char for char in name
    )


def unprintable(key: str) -> str:
    """The inverse of `printable`. Raises SourceError for text that `printable` cannot return."""
    if "\\" not in key:
        return key
    name, rest = "", key
    while rest:
        plain, backslash, rest = rest.partition("\\")
        name += plain
        if not backslash:
            break
        if rest.startswith("\\"):
            name, rest = name + "\\", rest[1:]
        elif rest.startswith("x") and len(rest) >= 3:
            name, rest = (
                name + bytes.fromhex(rest[1:3]).decode("utf-8", "surrogateescape"),
                rest[3:],
            )
        else:
            raise SourceError(f"{key!r} is not a key of this source: a stray backslash")
    return name
