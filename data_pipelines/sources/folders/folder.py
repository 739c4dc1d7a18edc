"""`folder:PATH`: every image or video file below a folder, local or in a bucket."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterator

from data_pipelines.media import Kind
from data_pipelines.sources import files, labels
from data_pipelines.sources.base import Item, Locator, Source, SourceError, unprintable
from data_pipelines.sources.folders.walk import Walk

# Names of pictures that are data about another one, as in `0_mask.png` for `0.jpg`.
_ANNOTATION = re.compile(
    r"(.+?)[._-](masks?|depth|seg|segmentation|semantic|instances?|matte|alpha|normals?)", re.I
)


class FolderSource(Source):
    """Image or video files by suffix, recursively, in the order of their keys: relative paths.

    * Labels: if no image lies directly in the folder, its immediate subfolders that contain images
      are the classes, sorted by name. If an image lies directly in the folder, there are no labels.
    * Names that begin with a dot, and files with other suffixes, are skipped and counted.
    * A symbolic link to a file is read as the file. A link to a folder is followed, unless that
      folder is listed under its own name or through another link, or the link is part of a loop:
      then the link is rejected. So every folder is listed once.
    * Names need not be UTF-8 (see `printable`).
    * Warnings: a picture directly in the folder beside class folders; class names that look like
      splits or differ in case only; pictures that look like masks of others.
    * If a file is missing, and the folder is gone, empty or on another file system than before,
      the source is unavailable: nothing is rejected.

    Listing costs one `scandir` per folder and no `stat` of ordinary files. Memory holds the names
    in the current folder and its parents.
    """

    scheme = "folder"
    label_advice = "put the files of each class into a subfolder"

    def __init__(self, argument: str, kind: Kind = "image") -> None:
        if not argument:
            raise SourceError("the source has no path, expected one as in 'folder:/data/photos'")
        super().__init__(argument, kind)
        self._root = files.expand_user(argument)
        files.require_folder(self._root)
        self._file_system = self._identity()
        self._unlabelled = ""  # why there are no classes, if there are candidates
        self._labels = {name: label for label, name in enumerate(self._classes())}
        if self._unlabelled:
            self.label_advice = self._unlabelled

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self._labels)

    def _list(self) -> Iterator[Item]:
        if self._unlabelled:
            self._warn(self._unlabelled)
        for text in labels.doubts(self.label_names, f"--source={self.spec}/NAME"):
            self._warn(text)
        masks: list[str] = []
        count = 0
        for key in self._checked(_marking(self._walk(), masks)):
            count += 1
            # -1 also for an image in a folder that was added after the classes were found.
            yield Item(key, key, self._labels.get(key.partition("/")[0], -1))
        if masks:
            self._warn(
                f"{len(masks):,} of {count:,} pictures are named like masks or maps of another one "
                f"(the first: {masks[0]!r}); each becomes a document of its own"
            )

    def read(self, locator: Locator) -> bytes:
        name = unprintable(locator) if isinstance(locator, str) else ""
        parts = name.split("/")
        if ".." in parts or "" in parts:
            raise SourceError(f"{locator!r} is not the relative path of a file in {self.spec}")
        try:
            return files.read_bytes(files.join(self._root, name), name=repr(locator))
        except SourceError as error:
            if isinstance(error.__cause__, OSError):
                files.raise_outage(error.__cause__, self._root)
                if isinstance(error.__cause__, FileNotFoundError):
                    self._raise_if_gone(parts[0])
            raise

    def _walk(self) -> Iterator[str]:
        return Walk(self._root, self.kind, self._reject, self._skip).media()

    def _checked(self, keys: Iterator[str]) -> Iterator[str]:
        """Yields the keys; raises StorageUnavailable at the end if the folder is another now."""
        yield from keys
        if self._identity() != self._file_system:
            raise files.unavailable(self.spec, "another file system is mounted there now")

    def _identity(self) -> tuple[int, int] | None:
        """Device and inode of the folder; None for one in a bucket."""
        if files.is_remote(self._root):
            return None
        try:
            status = os.stat(self._root)
        except OSError as error:
            raise files.unavailable(self.spec, error) from error
        return status.st_dev, status.st_ino

    def _raise_if_gone(self, first: str) -> None:
        """Raises StorageUnavailable if the folder itself is gone, not only a file below it.

        Args:
          first: the first part of the missing file's path.
        """
        if files.is_remote(self._root):
            try:
                files.require_folder(self._root)
            except SourceError as error:
                raise files.unavailable(self.spec, str(error)) from error
        elif self._identity() != self._file_system:
            raise files.unavailable(self.spec, "another file system is mounted there now")
        elif not os.listdir(self._root):
            raise files.unavailable(self.spec, "the folder is empty")
        elif os.path.islink(files.join(self._root, first)) and not os.path.exists(
            files.join(self._root, first)
        ):
            raise files.unavailable(f"{self.spec}/{first}", "the link leads nowhere")

    def _classes(self) -> list[str]:
        """Names of the classes, see the class docstring. Raises SourceError without any image."""
        walk = Walk(self._root, self.kind)
        # Sorted, since of two links to one folder the first is listed.
        names = sorted(walk.entries(""))
        direct = [name for name in names if not name.endswith("/")]
        folders = (name[:-1] for name in names if name.endswith("/"))
        classes = sorted(name for name in folders if walk.holds_medium(f"{name}/"))
        if direct and classes:
            others = f" and {len(direct) - 1:,} more lie" if len(direct) > 1 else " lies"
            self._unlabelled = (
                f"{direct[0]!r}{others} directly in the folder, so its subfolders "
                f"({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}) are not classes "
                "and nothing has a label; for labels, keep pictures in subfolders only"
            )
        if direct:
            return []
        if not classes:
            self._labels = {}
            next(self.items())  # Raises SourceError with what was found instead.
        return classes


def _marking(keys: Iterator[str], masks: list[str]) -> Iterator[str]:
    """Yields sorted keys; appends those that look like annotations of another one to `masks`."""
    folder, names, suspects = "", set[str](), collections.deque[tuple[str, str]]()

    def settle() -> None:
        masks.extend(key for key, base in suspects if base in names)

    for key in keys:
        parent, _, name = key.rpartition("/")
        if parent != folder:
            settle()
            folder, names = parent, set()
            suspects.clear()
        stem = os.path.splitext(name)[0]
        if match := _ANNOTATION.fullmatch(stem):
            suspects.append((key, match[1]))
        else:
            names.add(stem)
        yield key
    settle()
