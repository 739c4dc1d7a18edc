"""Walks a tree of local or remote folders; links, loops and special files are handled safely."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from data_pipelines.media import Kind
from data_pipelines.sources import files
from data_pipelines.sources.base import printable, unprintable
from data_pipelines.sources.formats import is_media_name, suffix_of


class _Rejected(Exception):
    """An entry cannot be listed; the message is the reason."""


class Walk:
    """One pass over the images or videos below a root folder.

    Its order is that of sorted names, never that of the file system, also where a link decides
    under which of two names a folder is listed.

    Names are parts of keys: printable path components. A folder's name ends in "/", so sorting the
    names in each folder sorts the whole keys.

    Every folder is listed once. A symbolic link to a folder is followed only if its target lies
    outside the tree; the folders below it are remembered by device and inode, since other links may
    lead there too. In a bucket, an object whose name has an empty part (`a//b.jpg`) is rejected:
    it has no path.
    """

    def __init__(
        self,
        root: str,
        kind: Kind = "image",
        reject: Callable[[str, str], None] = lambda key, reason: None,
        skip: Callable[[str], None] = lambda kind: None,
    ) -> None:
        self._root, self._kind = root, kind
        self._real_root = root if files.is_remote(root) else os.path.realpath(root)
        self._reject, self._skip = reject, skip
        self._links: set[str] = set()  # Keys of followed links.
        self._seen: set[tuple[int, int]] = set()  # Folders listed below such a link.

    def media(self) -> Iterator[str]:
        """Yields the keys of all images or videos, in order."""
        stack = [("", iter(sorted(self.entries(""))))]
        while stack:
            folder, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
            elif name.endswith("/"):
                below = folder + name
                stack.append((below, iter(sorted(self.entries(below)))))
            else:
                yield folder + name

    def holds_medium(self, folder: str) -> bool:
        """Whether there is an image or video below a folder; stops at the first."""
        folders = [folder]
        while folders:
            folder = folders.pop()
            below = []
            for name in self.entries(folder):
                if not name.endswith("/"):
                    return True
                below.append(folder + name)
            folders += sorted(below, reverse=True)
        return False

    def entries(self, folder: str) -> Iterator[str]:
        """Yields the names of images or videos and of subfolders in a folder, unsorted.

        Raises StorageUnavailable if the root is gone or does not answer.
        """
        path = self._path(folder)
        try:
            if files.is_remote(self._root):
                yield from self._remote_entries(folder, path)
            elif self._is_new(folder, path):
                with os.scandir(path) as entries:
                    for entry in entries:
                        yield from self._name(folder, entry)
        except files.READ_ERRORS as error:
            files.raise_outage(error, self._root)
            self._reject(folder or self._root, f"folder cannot be read: {files.why(error)}")

    def _remote_entries(self, folder: str, path: str) -> Iterator[str]:
        folders, names = files.listed_names(path)
        for name in names:
            if name and self._is_wanted(name):
                yield printable(name)
        for name in folders:
            if name and self._is_visible(name):
                yield f"{printable(name)}/"
        if "" in names + folders:
            for name in files.nameless_objects(path):
                if self._is_wanted(name):
                    self._reject(
                        folder + printable(name),
                        "its name has an empty part between slashes, which no folder can have: "
                        "rename the object",
                    )

    def _name(self, folder: str, entry: os.DirEntry[str]) -> Iterator[str]:
        """Yields the entry's name if it is to be listed; otherwise reports the reason."""
        if not self._is_visible(entry.name):
            return
        name = printable(entry.name)
        try:
            if entry.is_symlink():
                is_folder = self._follow(folder + name, entry)
            else:
                is_folder = entry.is_dir(follow_symlinks=False)
                if not is_folder and not entry.is_file(follow_symlinks=False):
                    raise _Rejected("not a regular file, but a pipe, a socket or a device")
        except OSError as error:
            files.raise_outage(error, self._root)
            self._reject(folder + name, f"cannot be read: {files.why(error)}")
        except _Rejected as reason:
            self._reject(folder + name, str(reason))
        else:
            if is_folder:
                yield f"{name}/"
            elif self._is_wanted(entry.name):
                yield name

    def _follow(self, key: str, link: os.DirEntry[str]) -> bool:
        """Whether a symbolic link leads to a folder (to be listed) or to a file."""
        try:
            mode = link.stat().st_mode
        except FileNotFoundError:
            raise _Rejected("a symbolic link that leads nowhere") from None
        if stat.S_ISREG(mode):
            return False
        if not stat.S_ISDIR(mode):
            raise _Rejected("a symbolic link to a pipe, a socket or a device")
        target = os.path.realpath(link.path)
        if _is_within(self._real_root, target):
            raise _Rejected("a symbolic link back to a folder that it lies in: a loop")
        if _is_within(target, self._real_root):
            inside = os.path.relpath(target, self._real_root)
            if not any(part.startswith(".") for part in inside.split("/")):
                raise _Rejected(f"a symbolic link to {printable(inside)}, which is listed itself")
        self._links.add(f"{key}/")
        return True

    def _is_new(self, folder: str, path: str) -> bool:
        """Whether a folder is to be listed; remembers it if a link has led to it."""
        if not any(folder.startswith(link) for link in self._links):
            return True
        status = os.stat(path)
        inode = (status.st_dev, status.st_ino)
        if inode in self._seen:
            self._reject(folder, "a folder that was listed already, through another symbolic link")
            return False
        self._seen.add(inode)
        return True

    def _is_visible(self, name: str) -> bool:
        if name.startswith("."):
            self._skip("hidden")
        return not name.startswith(".")

    def _is_wanted(self, name: str) -> bool:
        if not self._is_visible(name):
            return False
        if not is_media_name(name, self._kind):
            self._skip(suffix_of(name) or "without a suffix")
            return False
        return True

    def _path(self, key: str) -> str:
        return files.join(self._root, unprintable(key)) if key else self._root


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
