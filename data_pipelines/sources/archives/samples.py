"""Members of one tar -> its images, each with the label of its sample.

A sample is every member of the tar whose path agrees up to the first dot of the file name, wherever
it stands. `TarSource` lists tars through `images`.
"""

from __future__ import annotations

import collections
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from data_pipelines.media import Kind
from data_pipelines.sources.archives.archive import Member
from data_pipelines.sources.base import MAX_LABELS, MAX_MEDIUM_BYTES, printable
from data_pipelines.sources.formats import is_media_name, suffix_of
from data_pipelines.sources.labels import same_name

Label = int | str  # a number or the name of a class; -1: none
_NONE = -1

_INTEGER = re.compile(r"[+-]?[0-9]+")
# Extensions of members with labels, by precedence: those that are only the end of a longer
# extension come last (`b.info.json` is about something else than `b.json`).
_LABEL_EXTENSIONS = ("cls", "json")


class Image(NamedTuple):
    """An image member: its name, unique in its tar, where its bytes are, and its label."""

    name: str
    offset: int
    size: int
    label: Label


class Report(NamedTuple):
    """Where `images` reports what gives no image.

    Attributes:
      reject: called with a member's name and the reason.
      skip: called with the kind of a member.
      several: gets the first names of samples with several images.
      unused: gets the names of labels that belong to no image.
    """

    reject: Callable[[str, str], None]
    skip: Callable[[str], None]
    several: list[str]
    unused: list[str]


class _Group:
    """Consecutive members of one sample, no name twice."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.images: list[Member] = []
        self.labels: list[tuple[int, Member]] = []  # (precedence, member)
        self.names: set[str] = set()


def is_label(name: str) -> bool:
    """Whether a member of this name may hold a label."""
    return suffix_of(name) in (".cls", ".json")


def images(members: Iterable[Member], kind: Kind, report: Report) -> list[Image]:
    """The images of one tar, in member order.

    The label of a sample is the one in the same run of members, or else the one that all labels of
    this name in the tar agree on. An image whose label is unreadable or ambiguous is rejected.

    Args:
      members: of the tar; if they end by an exception, so does this function after the images
        before it: pass an iterator that reports damage itself.
      kind: "image" or "video".
      report: see `Report`.
    """
    groups = list(_groups(members, kind, report))
    labels: dict[str, list[_Group]] = collections.defaultdict(list)
    for group in groups:
        if group.labels:
            labels[group.base].append(group)
    similar: dict[str, list[_Group]] = collections.defaultdict(list)
    for base, found in labels.items():
        similar[same_name(base)] += found
    taken: dict[str, int] = {}
    used: set[str] = set()
    result: list[Image] = []
    for group in groups:
        if not group.images:
            continue
        if len(group.images) > 1:
            report.several.append(_clean(group.images[0].name))
        sources = [group] if group.labels else labels.get(group.base)
        sources = sources or similar.get(same_name(group.base), [])
        used.update(source.base for source in sources)
        try:
            label: Label = _agreed(sources)
            unusable = ""
        except ValueError as error:
            label, unusable = _NONE, str(error)
        for member in group.images:
            name = _clean(member.name)
            if unusable:
                report.reject(name, unusable)
            else:
                result.append(Image(_unique(name, taken), member.offset, member.size, label))
    report.unused.extend(
        _clean(group.labels[0][1].name)
        for base, found in labels.items()
        if base not in used
        for group in found
        if _has_label(group)
    )
    return result


def _groups(members: Iterable[Member], kind: Kind, report: Report) -> Iterator[_Group]:
    """Yields the runs of members of one sample; reports members that are neither image nor label.

    Hidden members (a Mac's `._0.cls` among them) belong to no sample.
    """
    group: _Group | None = None
    for member in members:
        name = _clean(member.name)
        raw = member.name.split("/")
        is_medium = is_media_name(name, kind)
        if member.kind == "folder":
            continue
        if member.name.startswith("/") or ".." in raw:
            report.reject(printable(member.name), "its path leads outside the archive")
        elif any(part.startswith(".") for part in name.split("/")):
            if member.kind == "file":
                report.skip("hidden")
            else:
                report.reject(name, f"a {member.kind}, expected an ordinary file")
        elif member.kind != "file" and not is_label(name):
            report.reject(name, f"a {member.kind}, expected an ordinary file")
        elif is_medium and member.size > MAX_MEDIUM_BYTES:
            report.reject(name, f"{member.size} bytes: too large for one {kind}")
        elif not is_medium and not is_label(name):
            report.skip(suffix_of(name) or "without a suffix")
        else:
            base, extension = _split(name)
            if group is None or group.base != base or name in group.names:
                if group is not None:
                    yield group
                group = _Group(base)
            group.names.add(name)
            if is_medium:
                group.images.append(member)
            else:
                report.skip(suffix_of(name))
                group.labels.append((_precedence(extension), member))
    if group is not None:
        yield group


def _clean(name: str) -> str:
    """The printable path of a member without empty parts and dots."""
    return printable("/".join(part for part in name.split("/") if part not in ("", ".")))


def _split(name: str) -> tuple[str, str]:
    """The base name of a sample (the path up to the first dot of the file name), and the rest."""
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}/{stem}", extension.lower()


def _precedence(extension: str) -> int:
    if extension in _LABEL_EXTENSIONS:
        return _LABEL_EXTENSIONS.index(extension)
    return len(_LABEL_EXTENSIONS) + _LABEL_EXTENSIONS.index(extension.rpartition(".")[2])


def _unique(name: str, taken: dict[str, int]) -> str:
    """The name, or with `#2`, `#3`, ... if the tar has it more than once."""
    if name not in taken:
        taken[name] = 1
        return name
    for number in itertools.count(taken[name] + 1):
        key = f"{name}#{number}"
        if key not in taken:
            taken[name], taken[key] = number, 1
            return key
    raise AssertionError("unreachable")


def _agreed(groups: list[_Group]) -> Label:
    """The label of all groups; -1 for none. Raises ValueError if they differ."""
    found = {label: group for group in groups if (label := _label(group)) != _NONE}
    if len(found) > 1:
        named = ", ".join(repr(label) for label in list(found)[:4])
        raise ValueError(f"its labels in the archive differ: {named}")
    return next(iter(found), _NONE)


def _label(group: _Group) -> Label:
    """The label of one group; -1 for none. Raises ValueError."""
    for _, members in itertools.groupby(sorted(group.labels, key=_order), key=_order):
        found = {label for _, m in members if (label := _read_label(m)) != _NONE}
        if len(found) > 1:
            raise ValueError(f"its labels differ: {', '.join(sorted(map(repr, found))[:4])}")
        if found:
            return found.pop()
    return _NONE


def _order(entry: tuple[int, Member]) -> int:
    return entry[0]


def _has_label(group: _Group) -> bool:
    try:
        return _label(group) != _NONE
    except ValueError:
        return True


def _read_label(member: Member) -> Label:
    name = printable(member.name)
    if member.kind != "file":
        raise ValueError(f"its label {name!r} is a {member.kind}, expected an ordinary file")
    if member.data is None:
        raise ValueError(f"its label {name!r} is {member.size} bytes long")
    try:
        text = member.data.decode("utf-8-sig").strip()
        is_number = suffix_of(name) == ".cls"
        value = _integer(text) if is_number else _label_field(json.loads(text))
    except (ValueError, RecursionError):
        raise ValueError(f"its label {name!r} cannot be read: {member.data[:40]!r}") from None
    if isinstance(value, str) or (type(value) is int and -1 <= value < MAX_LABELS):
        return value
    raise ValueError(
        f"its label in {name!r} is {value!r}, expected a name or an integer in 0..{MAX_LABELS - 1}"
    )


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _label_field(record: Any) -> Any:
    label = record.get("label") if isinstance(record, dict) else None
    return _NONE if label is None else label
