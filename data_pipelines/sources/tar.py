"""`tar:GLOB`: image or video files in tar archives, in the layout of WebDataset."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from data_pipelines.media import Kind
from data_pipelines.sources import files
from data_pipelines.sources.archive import DAMAGE, Member, is_compressed, members, open_archive
from data_pipelines.sources.base import (
    MAX_LABELS,
    MAX_MEDIUM_BYTES,
    Item,
    Locator,
    Source,
    SourceError,
    printable,
)
from data_pipelines.sources.file_pool import FilePool
from data_pipelines.sources.formats import is_media_name, suffix_of
from data_pipelines.sources.labels import class_names

_MAX_OPEN = 8


class _Image(NamedTuple):
    """An image member with the label of its sample: a number, a name, or -1 for none."""

    key: str
    locator: tuple[str, int, int]
    label: int | str


class TarSource(Source):
    """Image or video members of tars, sorted by the paths of the tars, then in member order.

    * GLOB may contain `*`, `?`, `[...]`, `{000..012}` and `{a,b}`.
    * A sample is a run of members whose paths agree up to the first dot of their names. Its label
      is the integer in its `.cls` member (-1: none), or the field "label" of its `.json` member:
      an integer, or the name of a class. Names are numbered in sorted order, which takes an extra
      pass over the tars. A sample with an unusable label is rejected.
    * Keys are `TAR/MEMBER`, where TAR is the path relative to the literal folder of GLOB. If a tar
      contains a name more than once, all members are kept: the second has the key `TAR/MEMBER#2`.
    * Members with absolute or `..` names, links, devices and sparse files are rejected.
    * A truncated or damaged tar gives the members before the damage; the tar itself is rejected.

    A plain tar has random access by offset. One compressed by gzip, bzip2 or xz is read forward:
    reads in the order of the listing decompress it once; a read further back starts over. Unpack
    such tars before reading them in another order.
    """

    scheme = "tar"

    def __init__(self, argument: str, kind: Kind = "image") -> None:
        super().__init__(argument, kind)
        folder = files.literal_folder(argument)
        self._paths = {
            printable(files.relative(path, folder)): path
            for path in files.matching_files(argument, example="tar:/data/train-{000..012}.tar")
        }
        self._label_names: tuple[str, ...] | None = None
        self._archives = FilePool(open_archive, max_open=_MAX_OPEN)
        self._compressed: dict[str, bool] = {}

    @property
    def label_names(self) -> tuple[str, ...]:
        """Known after the source was listed; reading them before that lists it."""
        if self._label_names is None:
            self._label_names = class_names((image.label for image in self._images()), self.spec)
        return self._label_names

    def _list(self) -> Iterator[Item]:
        numbers: dict[str, int] = {}
        largest = -1
        for image in self._images(self._reject, self._skip):
            label = image.label
            if isinstance(label, str):
                # All names must be known before the first can be numbered.
                numbers = numbers or {name: n for n, name in enumerate(self.label_names)}
                label = numbers[label]
            largest = max(largest, label)
            yield Item(image.key, image.locator, label)
        if self._label_names is None:
            self._label_names = tuple(str(label) for label in range(largest + 1))

    def read(self, locator: Locator) -> bytes:
        match locator:
            case [str(tar), int(offset), int(size)] if (
                tar in self._paths and min(offset, size) >= 0
            ):
                pass
            case _:
                raise SourceError(f"{locator!r} is not the locator of a member of {self.spec}")
        if size > MAX_MEDIUM_BYTES:
            raise SourceError(
                f"{size} bytes in {tar} at byte {offset}: too large for one {self.kind}"
            )
        try:
            with self._archives.borrow(self._paths[tar]) as file:
                file.seek(offset)
                data = file.read(size)
        except DAMAGE as error:
            raise SourceError(f"{tar} cannot be read: {files.why(error)}") from error
        if len(data) != size:
            raise SourceError(f"{tar} ends before byte {offset + size}: it is truncated")
        return data

    def unit(self, item: Item) -> str:
        """A compressed tar is one unit; in a plain tar each item is one."""
        assert isinstance(item.locator, tuple | list)
        tar = item.locator[0]
        if tar not in self._compressed:
            with self._archives.borrow(self._paths[tar]) as file:
                self._compressed[tar] = is_compressed(file)
        return tar if self._compressed[tar] else item.key

    def _images(
        self,
        reject: Callable[[str, str], None] = lambda key, reason: None,
        skip: Callable[[str], None] = lambda kind: None,
    ) -> Iterator[_Image]:
        """Yields all images with their raw labels; reports rejected and skipped members."""
        for tar, path in self._paths.items():
            taken: set[str] = set()
            for sample in _samples(tar, path, reject):
                yield from _images_of(tar, sample, self.kind, taken, reject, skip)


def _samples(tar: str, path: str, reject: Callable[[str, str], None]) -> Iterator[list[Member]]:
    """Yields runs of members with the same base name; rejects the tar where it is damaged."""
    sample: list[Member] = []
    count = 0
    damage = None
    try:
        with open_archive(path) as file:
            for member in members(file, with_data=_is_label):
                count += 1
                if sample and _base(member.name) != _base(sample[-1].name):
                    yield sample
                    sample = []
                sample.append(member)
    except DAMAGE as error:
        damage = files.why(error)
    if sample:
        yield sample
    if damage:
        reject(tar, f"damaged or truncated after {count} members: {damage}")


def _images_of(
    tar: str,
    sample: list[Member],
    kind: Kind,
    taken: set[str],
    reject: Callable[[str, str], None],
    skip: Callable[[str], None],
) -> Iterator[_Image]:
    """Yields the images of one sample under keys that are not `taken` in this tar."""
    try:
        label: int | str = _label(sample)
        unusable = ""
    except ValueError as error:
        label, unusable = -1, str(error)
    for member in sample:
        name = printable(member.name.removeprefix("./"))
        parts = name.split("/")
        if member.kind == "folder":
            continue
        if name.startswith("/") or ".." in parts:
            reject(f"{tar}/{name}", "its path leads outside the archive")
        elif member.kind != "file":
            reject(f"{tar}/{name}", f"a {member.kind}, expected an ordinary file")
        elif any(part.startswith(".") for part in parts):
            skip("hidden")
        elif not is_media_name(name, kind):
            skip(suffix_of(name) or "without a suffix")
        elif member.size > MAX_MEDIUM_BYTES:
            reject(f"{tar}/{name}", f"{member.size} bytes: too large for one {kind}")
        elif unusable:
            reject(f"{tar}/{name}", unusable)
        else:
            repeats = itertools.count(2)
            key = name
            while key in taken:
                key = f"{name}#{next(repeats)}"
            taken.add(key)
            yield _Image(f"{tar}/{key}", (tar, member.offset, member.size), label)


def _base(name: str) -> str:
    """The base name of a sample: the path up to the first dot of the file name."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _is_label(name: str) -> bool:
    return name.endswith((".cls", ".json"))


def _label(sample: list[Member]) -> int | str:
    """The label in a sample's `.cls` or else `.json` member; -1 for none. Raises ValueError."""
    for suffix in (".cls", ".json"):
        for member in sample:
            if member.kind == "file" and member.name.endswith(suffix):
                return _read_label(member)
    return -1


def _read_label(member: Member) -> int | str:
    name = printable(member.name)
    if member.data is None:
        raise ValueError(f"its label {name!r} is {member.size} bytes long")
    try:
        text = member.data.decode()
        value = int(text) if name.endswith(".cls") else _label_field(json.loads(text))
    except (ValueError, RecursionError):
        raise ValueError(f"its label {name!r} cannot be read: {member.data[:40]!r}") from None
    if isinstance(value, str) or (type(value) is int and -1 <= value < MAX_LABELS):
        return value
    raise ValueError(
        f"its label in {name!r} is {value!r}, expected a name or an integer in 0..{MAX_LABELS - 1}"
    )


def _label_field(record: Any) -> Any:
    label = record.get("label") if isinstance(record, dict) else None
    return -1 if label is None else label
