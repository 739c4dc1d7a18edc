"""Opens, reads and lists files, local or in a bucket (`gs://`, `s3://` through etils.epath).

Local paths use `os` directly: they may contain bytes that are not UTF-8, pipes that would block a
reader, and millions of entries, which portable path classes do not handle.
"""

from __future__ import annotations

import glob
import itertools
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from data_pipelines.sources.base import MAX_MEDIUM_BYTES, SourceError

# `{000..012}` and `{train,val}`: ranges of shards, as in WebDataset and shells.
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_EXPANDED = 100_000

# Remote file systems raise OSError for a file that cannot be read, and the others for missing
# drivers or credentials.
READ_ERRORS = (OSError, ImportError, NotImplementedError)


def is_remote(path: str) -> bool:
    return "://" in path


def expand_user(path: str) -> str:
    """Expands a leading `~` and removes slashes at the end."""
    path = path if is_remote(path) else os.path.expanduser(path)
    return path.rstrip("/") or "/"


def literal_folder(pattern: str) -> str:
    """The folder part of a pattern before its first brace or wildcard."""
    return re.split(r"[*?\[{]", expand_user(pattern), maxsplit=1)[0].rpartition("/")[0]


def relative(path: str, folder: str) -> str:
    """The part of a path below a folder, which must be its prefix ("" returns the path)."""
    return path[len(folder) :].lstrip("/")


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def why(error: BaseException) -> str:
    """The reason in an error, without the path and number that Python adds."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__


def open_binary(path: str) -> IO[Any]:
    """Opens a regular file for random access.

    Raises OSError, also for a pipe or a device, without waiting for it.
    """
    if is_remote(path):
        return _open_remote(path)
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "not a regular file")
    return file


def _open_remote(path: str) -> IO[Any]:
    opened: Any = epath.Path(path).open("rb")
    if hasattr(opened, "read"):
        return opened
    # With TensorFlow installed, etils returns a context manager that closes its file when it is
    # garbage-collected: keep a reference to it.
    file = opened.__enter__()
    file.opened_by = opened
    return file


def read_bytes(path: str, name: str) -> bytes:
    """Reads a whole file. Raises SourceError, whose message calls the file `name`."""
    try:
        with open_binary(path) as file:
            data = file.read(MAX_MEDIUM_BYTES + 1)
    except READ_ERRORS as error:
        raise SourceError(f"{name} cannot be read: {why(error)}") from error
    if len(data) > MAX_MEDIUM_BYTES:
        raise SourceError(
            f"{name} is larger than {MAX_MEDIUM_BYTES >> 20} MiB: not one image or clip"
        )
    return data


def require_folder(path: str) -> None:
    """Raises SourceError unless the path is a folder."""
    try:
        folder = epath.Path(path) if is_remote(path) else pathlib.Path(path)
        is_folder, exists = folder.is_dir(), folder.exists()
    except READ_ERRORS as error:
        raise SourceError(f"the folder {path!r} cannot be read: {why(error)}") from error
    if not exists:
        raise SourceError(f"there is no folder {path!r}")
    if not is_folder:
        raise SourceError(f"{path!r} is a file, expected a folder (tar:FILE reads a tar)")


def expand_braces(pattern: str) -> Iterator[str]:
    """`a-{08..10}.tar` -> `a-08.tar`, `a-09.tar`, `a-10.tar`; `{a,b}` -> each in turn."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    head, tail = pattern[: match.start()], pattern[match.end() :]
    for choice in _choices(match[1]):
        yield from (head + choice + rest for rest in expand_braces(tail))


def _choices(inside: str) -> Iterator[str]:
    ends = _RANGE.fullmatch(inside)
    if ends is None:
        yield from inside.split(",")
        return
    first, last = ends.groups()
    # Bash pads with zeros only if an end is written with one.
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(last) >= int(first) else -1
    for number in range(int(first), int(last) + step, step):
        yield f"{number:0{width}d}"


def matching_files(pattern: str, example: str) -> list[str]:
    """The files that match a pattern of braces and `*`, `?`, `[...]`, sorted by path.

    Raises SourceError if any alternative of the braces matches no file, as for a missing shard.
    """
    if not pattern:
        raise SourceError(f"the source has no path, expected one as in {example!r}")
    alternatives = list(itertools.islice(expand_braces(expand_user(pattern)), _MAX_EXPANDED + 1))
    if len(alternatives) > _MAX_EXPANDED:
        raise SourceError(f"{pattern!r} expands to more than {_MAX_EXPANDED:,} files")
    found: set[str] = set()
    missing = []
    for alternative in alternatives:
        try:
            matches = _glob(alternative)
        except READ_ERRORS as error:
            raise SourceError(f"{alternative!r} cannot be listed: {why(error)}") from error
        found.update(matches)
        if not matches:
            missing.append(alternative)
    if missing:
        others = f" (nor do {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise SourceError(f"{missing[0]!r} matches no file{others}")
    return sorted(found)


def _glob(pattern: str) -> list[str]:
    if is_remote(pattern):
        return [str(path) for path in epath.Path(pattern).parent.glob(pattern.rsplit("/", 1)[1])]
    if os.path.isfile(pattern):  # A name may contain "[" literally.
        return [pattern]
    return [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
