"""Opens, reads and lists files, local or in a bucket (`gs://`, `s3://` through etils.epath).

Local paths use `os` directly: they may contain bytes that are not UTF-8, pipes that would block a
reader, and millions of entries, which portable path classes do not handle.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import itertools
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Iterator
from typing import IO, Any, NoReturn

from etils import epath

from data_pipelines.sources.base import MAX_MEDIUM_BYTES, SourceError, printable, unprintable
from data_pipelines.utils.files import StorageUnavailable, missing_driver, unknown_scheme

# `{000..012}` and `{train,val}`: ranges of shards, as in WebDataset and shells.
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_EXPANDED = 100_000

# Remote file systems raise OSError for a file that cannot be read, and the others for missing
# drivers or credentials.
READ_ERRORS = (OSError, ImportError, NotImplementedError)

# Errors of a file system or of this process, whatever the file: a network mount that is gone, a
# disk that was pulled, too many open files. Some exist on one platform only.
_OUTAGES = frozenset(
    getattr(errno, name)
    for name in (
        *("ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN"),
        *("ENETUNREACH", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ENODEV"),
        *("ENXIO", "EREMOTEIO", "ENOMEDIUM", "ESHUTDOWN", "ENOLINK", "ECOMM", "EMFILE"),
        *("ENFILE", "ENOMEM", "EKEYEXPIRED"),
    )
    if hasattr(errno, name)
)
# Errors that one file or all of them may have: whether the rest can be read decides.
_UNCLEAR = (errno.ENOENT, errno.ENOTDIR, errno.EIO)


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


def unavailable(what: str, error: BaseException | str) -> StorageUnavailable:
    """The error for storage that is gone, with what to do."""
    reason = error if isinstance(error, str) else why(error)
    return StorageUnavailable(
        f"{what} cannot be read any more: {reason}. Finished shards are kept: when it is back, the "
        "same command resumes"
    )


def raise_outage(error: BaseException, path: str) -> None:
    """Raises StorageUnavailable if an error concerns the storage of a path; else returns.

    Args:
      error: of reading `path`, or of a file below it.
      path: a folder, or a file with many items.
    """
    if not isinstance(error, OSError) or is_remote(path):
        return  # for remote files `_reported` decides
    if error.errno in _OUTAGES or (error.errno in _UNCLEAR and not _answers(path)):
        raise unavailable(repr(path), error) from error


def _answers(path: str) -> bool:
    """Whether a local folder can be listed, or the first byte of a file can be read."""
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                next(entries, None)
        else:
            with open_binary(path) as file:
                file.read(1)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
    """Raises StorageUnavailable for every error of an object store but a missing object.

    Backends raise errors of many types for a store that does not answer or refuses credentials.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, StorageUnavailable):
        raise
    except Exception as error:
        text = missing_driver(error)
        raise SourceError(text) if text else unavailable(path, error) from error


def check_scheme(path: str) -> None:
    """Raises SourceError for a path with a scheme that no backend opens, as `https://`."""
    if text := unknown_scheme(path):
        raise SourceError(text)


def open_binary(path: str) -> IO[Any]:
    """Opens a regular file for random access.

    Raises:
      OSError: there is no such file, or it is a pipe or a device (without waiting for it).
      StorageUnavailable: an object store does not answer; also raised by later reads.
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
    check_scheme(path)
    with _reported(path):
        opened: Any = epath.Path(path).open("rb")
        # With TensorFlow installed, etils returns a context manager that closes its file when it
        # is garbage-collected: `_RemoteFile` keeps a reference to it.
        file = opened if hasattr(opened, "read") else opened.__enter__()
        return _RemoteFile(path, file, opened)  # type: ignore[return-value]


class _RemoteFile:
    """An open file of an object store, whose reads raise StorageUnavailable."""

    def __init__(self, path: str, file: IO[Any], opened_by: Any) -> None:
        self._path, self._file, self._opened_by = path, file, opened_by

    def read(self, *size: int) -> bytes:
        with _reported(self._path):
            return self._file.read(*size)

    def seek(self, *where: int) -> int:
        with _reported(self._path):
            return self._file.seek(*where)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _RemoteFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


def read_bytes(path: str, name: str) -> bytes:
    """Reads a whole file.

    Raises:
      SourceError: it cannot be read; the message calls the file `name`.
      StorageUnavailable: an object store does not answer.
    """
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
    check_scheme(path)
    try:
        with _reported(path) if is_remote(path) else contextlib.nullcontext():
            folder = epath.Path(path) if is_remote(path) else pathlib.Path(path)
            is_folder, exists = folder.is_dir(), folder.exists()
    except READ_ERRORS as error:
        raise SourceError(f"the folder {path!r} cannot be read: {why(error)}") from error
    if not exists:
        raise SourceError(f"there is no folder {path!r}" + _folder_of_pattern(path))
    if not is_folder:
        raise SourceError(f"{path!r} is a file, expected a folder (tar:FILE reads a tar)")


def _folder_of_pattern(path: str) -> str:
    """Advice for a pattern where a folder is meant."""
    if not re.search(r"[*?\[{]", path):
        return ""
    return f"; it is a pattern, expected one folder, as in 'folder:{literal_folder(path) or '.'}'"


def nameless_objects(folder: str) -> list[str]:
    """Objects of a bucket below FOLDER// : an empty part of a name is no folder that can be listed.

    Returns their names after `FOLDER/`, which begin with a slash.
    """
    import fsspec

    system, root = fsspec.core.url_to_fs(folder)
    root = root.rstrip("/")
    with _reported(folder):
        return [name[len(root) + 1 :] for name in system.find(root) if name.startswith(f"{root}//")]


def listed_names(folder: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder of an object store.

    An empty file name stands for a folder object, or for what `nameless_objects` lists.
    """

    def stop(error: OSError) -> NoReturn:
        raise error  # Without this, a folder that cannot be listed counts as empty.

    with _reported(folder):
        walked = epath.Path(folder).walk(on_error=stop)
        _, folders, names = next(walked, (folder, [], []))
    return folders, names


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

    Args:
      pattern: local or remote.
      example: a spec of this source, for messages; it ends with the suffix of its files.

    Raises:
      SourceError: an alternative of the braces matches no file, as for a missing shard.
      StorageUnavailable: an object store does not answer.
    """
    if not pattern:
        raise SourceError(f"the source has no path, expected one as in {example!r}")
    check_scheme(pattern)
    alternatives = list(itertools.islice(expand_braces(expand_user(pattern)), _MAX_EXPANDED + 1))
    if len(alternatives) > _MAX_EXPANDED:
        raise SourceError(f"{pattern!r} expands to more than {_MAX_EXPANDED:,} files")
    found: set[str] = set()
    missing = []
    for alternative in alternatives:
        try:
            matches = _glob(alternative)
        except READ_ERRORS as error:
            raise_outage(error, literal_folder(alternative) or ".")
            raise SourceError(f"{alternative!r} cannot be listed: {why(error)}") from error
        found.update(matches)
        if not matches:
            missing.append(alternative)
    if missing:
        if not is_remote(missing[0]) and os.path.isdir(missing[0]):
            kind, suffix = example.partition(":")[0], os.path.splitext(example)[1]
            raise SourceError(
                f"{missing[0]!r} is a folder, expected files, as in "
                f"'{kind}:{join(missing[0], '*' + suffix)}'"
            )
        others = f" (nor do {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise SourceError(f"{missing[0]!r} matches no file{others}")
    return sorted(found)


def raise_missing(pattern: str, name: str) -> None:
    """Raises StorageUnavailable if a file that the listing has is gone; else returns.

    Args:
      pattern: of the source's files.
      name: printable path of the file, relative to the pattern's literal folder.
    """
    folder = literal_folder(pattern)
    path = join(folder, unprintable(name)) if "/" in pattern else unprintable(name)
    alternatives = expand_braces(expand_user(pattern))
    if not any(path == other or fnmatch.fnmatchcase(path, other) for other in alternatives):
        return  # never one of the source's files
    try:
        file = open_binary(path)
    except FileNotFoundError as error:
        raise unavailable(repr(path), error) from error
    except OSError as error:
        raise_outage(error, path)
    else:
        file.close()


def repeated(paths: Iterable[str]) -> dict[str, str]:
    """The symbolic links among local files to another one of them, with its path."""
    targets = {path: path for path in paths if not is_remote(path) and not os.path.islink(path)}
    found = {}
    for path in paths:
        if not is_remote(path) and os.path.islink(path):
            # The first of two links to one file outside is kept.
            original = targets.setdefault(os.path.realpath(path), path)
            if original != path:
                found[path] = original
    return found


def distinct_files(pattern: str, example: str) -> tuple[dict[str, str], dict[str, str]]:
    """The files that match a pattern, by printable name below its folder.

    Args: see `matching_files`.

    Returns:
      The path of each file, and for each link to another of the files the name of that file. A
      name is in one of the two only.
    """
    folder = literal_folder(pattern)

    def name(path: str) -> str:
        return printable(relative(path, folder))

    found = matching_files(pattern, example)
    links = repeated(found)
    paths = {name(path): path for path in found if path not in links}
    return paths, {name(path): name(original) for path, original in links.items()}


def _glob(pattern: str) -> list[str]:
    if is_remote(pattern):
        with _reported(pattern):
            parent, name = epath.Path(pattern).parent, pattern.rsplit("/", 1)[1]
            return [str(path) for path in parent.glob(name)]
    if os.path.isfile(pattern):  # A name may contain "[" literally.
        return [pattern]
    # A link that leads nowhere is kept: its target may be on storage that is gone.
    matches = glob.glob(pattern, recursive=True)
    return [path for path in matches if os.path.isfile(path) or not os.path.exists(path)]
