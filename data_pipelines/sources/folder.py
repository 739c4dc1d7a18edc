"""`folder:PATH`: every image or video file below a folder, local or in a bucket."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipelines.media import Kind
from data_pipelines.sources import files
from data_pipelines.sources.base import Item, Locator, Source, SourceError, unprintable
from data_pipelines.sources.walk import Walk


class FolderSource(Source):
    """Image or video files by suffix, recursively, in the order of their keys: relative paths.

    * Labels: if no image lies directly in the folder, its immediate subfolders that contain images
      are the classes, sorted by name. If an image lies directly in the folder, there are no labels.
    * Names that begin with a dot, and files with other suffixes, are skipped and counted.
    * A symbolic link to a file is read as the file. A link to a folder is followed, unless that
      folder is listed under its own name or through another link, or the link is part of a loop:
      then the link is rejected. So every folder is listed once.
    * Names need not be UTF-8 (see `printable`).

    Listing costs one `scandir` per folder and no `stat` of ordinary files. Memory holds the names
    in the current folder and its parents.
    """

    scheme = "folder"

    def __init__(self, argument: str, kind: Kind = "image") -> None:
        if not argument:
            raise SourceError("the source has no path, expected one as in 'folder:/data/photos'")
        super().__init__(argument, kind)
        self._root = files.expand_user(argument)
        files.require_folder(self._root)
        self._labels = {name: label for label, name in enumerate(self._classes())}

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self._labels)

    def _list(self) -> Iterator[Item]:
        for key in Walk(self._root, self.kind, self._reject, self._skip).media():
            # -1 also for an image in a folder that was added after the classes were found.
            yield Item(key, key, self._labels.get(key.partition("/")[0], -1))

    def read(self, locator: Locator) -> bytes:
        name = unprintable(locator) if isinstance(locator, str) else ""
        parts = name.split("/")
        if ".." in parts or "" in parts:
            raise SourceError(f"{locator!r} is not the relative path of a file in {self.spec}")
        return files.read_bytes(files.join(self._root, name), name=repr(locator))

    def _classes(self) -> list[str]:
        """Names of the classes, see the class docstring. Raises SourceError without any image."""
        walk = Walk(self._root, self.kind)
        names = list(walk.entries(""))
        if not all(name.endswith("/") for name in names):
            return []
        classes = sorted(name[:-1] for name in names if walk.holds_medium(name))
        if not classes:
            self._labels = {}
            next(self.items())  # Raises SourceError with what was found instead.
        return classes
