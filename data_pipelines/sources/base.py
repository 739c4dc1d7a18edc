"""What every source of media offers: a cheap listing, and reads at random by locator.

A source yields the *encoded* bytes of each medium, of an image file or of a video file, and never
decodes them: whether they can be decoded is for the reader to find out.
"""

from __future__ import annotations

import abc
import collections
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

# An encoded image past this size is an archive or a film under a wrong name; reading it whole
# would only take memory. The largest honest TIFF of 2**28 pixels fits.
MAX_MEDIUM_BYTES = 2**30

# A class is a token, and tokens are uint16; the bytes and specials have theirs.
MAX_LABELS = 2**15

# Kinds of skipped entries that are counted apart; the rest share one counter, so that a folder
# of a million different suffixes does not make a million counters.
_MAX_SKIPPED_KINDS = 64

Kind = Literal["image", "video"]
Locator = str | int | tuple[Any, ...] | list[Any]


class SourceError(ValueError):
    """A source, or one medium in it, cannot be read; the message is one clear sentence."""


class Item(NamedTuple):
    """One medium of a source.

    Attributes:
      key: its name, unique in the source and stable between runs; valid Unicode always.
      locator: where it lies: JSON values from which `read` finds it, in any process.
      label: its class, an index into `label_names`; -1 for none.
    """

    key: str
    locator: Locator
    label: int = -1


class Reject(NamedTuple):
    """One entry of a source that was set aside while listing, and why."""

    key: str
    reason: str


class Source(abc.ABC):
    """Media by name. Made by `open_source(spec, kind)`; also pickles, as nothing but these.

    Attributes:
      kind: of its media: "image" or "video".
      rejects: entries that should have been media and cannot be, with the reason of each.
      skipped: how many entries were passed over on purpose, by kind (a suffix, "hidden", ...).

    Both hold what the latest pass over `items()` has met so far.
    """

    scheme: ClassVar[str]

    def __init__(self, argument: str = "", kind: Kind = "image") -> None:
        self.argument, self.kind = argument, kind
        self.rejects: list[Reject] = []
        self.skipped: collections.Counter[str] = collections.Counter()

    @property
    def spec(self) -> str:
        """The text from which `open_source` makes an equal source."""
        return f"{self.scheme}:{self.argument}" if self.argument else self.scheme

    @property
    @abc.abstractmethod
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, by label; empty for an unlabelled source."""

    @abc.abstractmethod
    def _list(self) -> Iterator[Item]:
        """The items in their order, reporting through `_reject` and `_skip` on the way."""

    @abc.abstractmethod
    def read(self, locator: Locator) -> bytes:
        """The encoded medium at an item's locator (which may have been through JSON).

        Raises SourceError if it is gone, damaged, not readable or too large.
        """

    def unit(self, item: Item) -> str:
        """The name of what must be read as a whole, or from its beginning, to read an item.

        Items of one unit are best read together and in their order. Where items are read at
        random each is its own unit, by its key.
        """
        return item.key

    def items(self) -> Iterator[Item]:
        """Lists the source, in the same order every time, without decoding any medium.

        Raises SourceError at the end if there was nothing to list.
        """
        self.rejects = []
        self.skipped = collections.Counter()
        empty = True
        for item in self._list():
            empty = False
            yield item
        if empty:
            raise SourceError(self._nothing_found())

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files and caches stay behind: each process opens its own.
        return type(self), (self.argument, self.kind)

    def __repr__(self) -> str:
        return f"open_source({self.spec!r})"

    def _reject(self, key: str, reason: str) -> None:
        reason = reason.encode("utf-8", "backslashreplace").decode()
        self.rejects.append(Reject(printable(key), reason))

    def _skip(self, kind: str) -> None:
        known = kind in self.skipped or len(self.skipped) < _MAX_SKIPPED_KINDS
        self.skipped[kind if known else "other kinds"] += 1

    def _nothing_found(self) -> str:
        found = [f"{count} {printable(kind)}" for kind, count in self.skipped.most_common(5)]
        if self.rejects:
            first = self.rejects[0]
            found.append(f"{len(self.rejects)} set aside, the first {first.key!r}: {first.reason}")
        return f"{self.spec} holds no {self.kind}" + (
            f" (found: {', '.join(found)})" if found else ""
        )


def printable(name: str) -> str:
    r"""A name from the file system as valid Unicode, one to one.

    Python carries the bytes of a name that are not UTF-8 as lone surrogates, which neither JSON
    readers nor `str.encode` accept: they become `\xNN`, and a backslash becomes two.
    """
    if name.isascii() and "\\" not in name:
        return name
    name = name.replace("\\", "\\\\")
    return "".join(
        f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char for char in name
    )


def unprintable(key: str) -> str:
    """The inverse of `printable`. Raises SourceError for text that `printable` never makes."""
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
