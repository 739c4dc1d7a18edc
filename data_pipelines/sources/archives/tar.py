"""`tar:GLOB`: image or video files in tar archives, in the layout of WebDataset."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator

from data_pipelines.media import Kind
from data_pipelines.sources import files, labels
from data_pipelines.sources.archives import samples
from data_pipelines.sources.archives.archive import (
    DAMAGE,
    Member,
    TrailingData,
    first_bytes,
    is_compressed,
    members,
    open_archive,
)
from data_pipelines.sources.base import (
    MAX_MEDIUM_BYTES,
    Item,
    Locator,
    Source,
    SourceError,
)
from data_pipelines.sources.file_pool import FilePool

_MAX_OPEN = 8


class TarSource(Source):
    """Image or video members of tars, sorted by the paths of the tars, then in member order.

    * GLOB may contain `*`, `?`, `[...]`, `{000..012}` and `{a,b}`. A symbolic link to another of
      the tars is rejected.
    * A sample is all members of a tar whose paths agree up to the first dot of their names,
      wherever they stand. Its label is the integer in its `.cls` member (-1: none), or the field
      "label" of its `.json` member: an integer, or the name of a class. An extension that is `cls`
      or `json` as a whole comes before one that ends so. Names are numbered in sorted order, which
      takes an extra pass over the tars. If no base name agrees exactly, one that differs in case
      or accents' encoding only does. A sample with an unusable or ambiguous label is rejected.
    * Hidden members (a Mac's `._0.cls`) are skipped; they belong to no sample.
    * Warnings: samples with several images; labels without an image.
    * Keys are `TAR/MEMBER`, where TAR is the path relative to the literal folder of GLOB. If a tar
      contains a name more than once, all members are kept: the second has the key `TAR/MEMBER#2`.
    * Members with absolute or `..` names, links, devices and sparse files are rejected.
    * A truncated or damaged tar gives the members before the damage; the tar itself is rejected. So
      is a tar with data after its end mark.
    * A tar that is gone since the listing makes the source unavailable.

    A plain tar has random access by offset. One compressed by gzip, bzip2 or xz is read forward:
    reads in the order of the listing decompress it once; a read further back starts over. Unpack
    such tars before reading them in another order. Memory holds the names of one tar's members.
    """

    scheme = "tar"
    label_advice = (
        "a tar takes labels from .cls or .json members next to the images (0.jpg, 0.cls), not from "
        "folders inside it; unpack it for --source=folder:PATH, where subfolders are classes"
    )

    def __init__(self, argument: str, kind: Kind = "image") -> None:
        super().__init__(argument, kind)
        self._paths, self._repeated = files.distinct_files(
            argument, example="tar:/data/train-{000..012}.tar"
        )
        self._label_names: tuple[str, ...] | None = None
        self._archives = FilePool(open_archive, max_open=_MAX_OPEN)
        self._compressed: dict[str, bool] = {}

    @property
    def label_names(self) -> tuple[str, ...]:
        """Known after the source was listed; reading them before that lists it."""
        if self._label_names is None:
            found = (
                image.label
                for tar in self._paths
                for image in self._images(
                    tar, samples.Report(lambda key, reason: None, lambda kind: None, [], [])
                )
            )
            self._label_names = labels.class_names(found, self.spec)
        return self._label_names

    def _list(self) -> Iterator[Item]:
        numbers: dict[str, int] = {}
        largest, count, unlabelled, first = -1, 0, 0, ""
        report = samples.Report(self._reject, self._skip, [], [])
        for tar, original in self._repeated.items():
            self._reject(tar, f"a symbolic link to {original}, which is listed itself")
        for tar in self._paths:
            for image in self._images(tar, report):
                label = image.label
                if isinstance(label, str):
                    # All names must be known before the first can be numbered.
                    numbers = numbers or {name: n for n, name in enumerate(self.label_names)}
                    label = numbers[label]
                largest, count = max(largest, label), count + 1
                if label == -1:
                    unlabelled, first = unlabelled + 1, first or f"{tar}/{image.name}"
                yield Item(f"{tar}/{image.name}", (tar, image.offset, image.size), label)
        if self._label_names is None:
            self._label_names = tuple(str(label) for label in range(largest + 1))
        if report.several:
            self._warn(
                f"{len(report.several):,} samples have several {self.kind}s (the first: "
                f"{report.several[0]!r}), such as masks or depth; each becomes a document"
            )
        if report.unused:
            self._warn(
                f"{len(report.unused):,} labels belong to no {self.kind} (the first: "
                f"{report.unused[0]!r}): no {self.kind} has the same name up to its first dot"
            )
        if unlabelled and unlabelled < count:
            self._warn(
                f"{unlabelled:,} of {count:,} {self.kind}s have no label (the first: {first!r})"
            )
        for text in labels.mixed_splits(self._paths):
            self._warn(text)

    def read(self, locator: Locator) -> bytes:
        match locator:
            case [str(tar), int(offset), int(size)] if min(offset, size) >= 0:
                pass
            case _:
                raise SourceError(f"{locator!r} is not the locator of a member of {self.spec}")
        if tar not in self._paths:
            files.raise_missing(self.argument, tar)
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
            self._raise_outage(error, tar)
            raise SourceError(f"{tar} cannot be read: {files.why(error)}") from error
        if len(data) != size:
            raise SourceError(f"{tar} ends before byte {offset + size}: it is truncated")
        return data

    def unit(self, item: Item) -> str:
        """A compressed tar is one unit; in a plain tar each item is one."""
        assert isinstance(item.locator, tuple | list)
        tar = item.locator[0]
        if tar not in self._paths:
            files.raise_missing(self.argument, tar)
        if tar not in self._compressed:
            try:
                with self._archives.borrow(self._paths[tar]) as file:
                    self._compressed[tar] = is_compressed(file)
            except files.READ_ERRORS as error:
                self._raise_outage(error, tar)
                raise
        return tar if self._compressed[tar] else item.key

    def _images(self, tar: str, report: samples.Report) -> list[samples.Image]:
        """The images of one tar with their raw labels; keys of reports begin with the tar's."""

        def reject(name: str, reason: str) -> None:
            report.reject(f"{tar}/{name}" if name else tar, reason)

        several, unused = list[str](), list[str]()
        found = samples.images(
            self._members(tar, reject),
            self.kind,
            samples.Report(reject, report.skip, several, unused),
        )
        report.several.extend(f"{tar}/{name}" for name in several)
        report.unused.extend(f"{tar}/{name}" for name in unused)
        return found

    def _members(self, tar: str, reject: Callable[[str, str], None]) -> Iterator[Member]:
        """Yields the members of a tar; rejects the tar where it is damaged."""
        path, count = self._paths[tar], 0
        try:
            with open_archive(path) as file:
                try:
                    for member in members(file, with_data=samples.is_label):
                        count += 1
                        yield member
                except TrailingData as error:
                    reject("", str(error))
                except tarfile.TarError as error:
                    text = str(error)
                    if not count:
                        text = f"no tar, it begins with {first_bytes(file)!r} ({text})"
                    raise tarfile.ReadError(text) from error
        except DAMAGE as error:
            self._raise_outage(error, tar)
            reject("", f"damaged or truncated after {count} members: {files.why(error)}")

    def _raise_outage(self, error: Exception, tar: str) -> None:
        files.raise_outage(error, self._paths[tar])
