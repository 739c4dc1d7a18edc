"""`folder:PATH`: every image or video file below a folder, local or in a bucket."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipelines.sources import files
from data_pipelines.sources.base import Item, Kind, Locator, Source, SourceError, unprintable
from data_pipelines.sources.walk import Walk


class FolderSource(Source):
    """Image or video files by suffix, recursively, in the order of their keys: relative paths.

    * Labels: if no image lies in the folder itself, every image lies in one of its immediate
      subfolders, and these are the classes: those that hold an image, in the order of names.
      If an image lies in the folder itself, nothing is labelled.
    * Names that begin with a dot, and files of other suffixes, are skipped and counted.
    * A symbolic link to a file is read as the file. One to a folder is followed, unless that
      folder is listed under its own name anyway or was listed through another link: then, as for
      a loop, the link is set aside and named. So every folder is listed once.
    * Names need not be UTF-8 (see `printable`).

    Listing costs one `scandir` a folder and no `stat` of ordinary files. It holds the names in
    the folders on the way to the present one, and nothing of what it has left behind.
    """

    scheme = "folder"

    def __init__(self, argument: str, kind: Kind = "image") -> None:
        if not argument:
            raise SourceError("a path is missing, as in 'folder:/data/photos'")
        super().__init__(argument, kind)
        self._root = files.expand_user(argument)
        files.require_folder(self._root)
        self._labels = {name: label for label, name in enumerate(self._classes())}

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self._labels)

    def _list(self) -> Iterator[Item]:
        for key in Walk(self._root, self.kind, self._reject, self._skip).media():
            # -1 too for an image in a folder that came after the classes were found.
            yield Item(key, key, self._labels.get(key.partition("/")[0], -1))

    def read(self, locator: Locator) -> bytes:
        name = unprintable(locator) if isinstance(locator, str) else ""
        parts = name.split("/")
        if ".." in parts or "" in parts:
            raise SourceError(f"{locator!r} is not the relative path of a file in {self.spec}")
        return files.read_bytes(files.join(self._root, name), name=repr(locator))

    def _classes(self) -> list[str]:
        """Names of the classes by the rule above. Raises SourceError if there is no image."""
        walk = Walk(self._root, self.kind)
        names = list(walk.entries(""))
        if not all(name.endswith("/") for name in names):
            return []
        classes = sorted(name[:-1] for name in names if walk.holds_medium(name))
        if not classes:
            self._labels = {}
            next(self.items())  # Raises, telling what there is instead.
        return classes
