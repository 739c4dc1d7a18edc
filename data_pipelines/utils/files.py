"""Files that are written whole or not at all, here and on object stores."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from typing import Any

from etils import epath


class WriteError(RuntimeError):
    """A file could not be written."""


def is_remote(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)


def to_json(value: Any, indent: int | None = 1) -> bytes:
    """Equal values give equal bytes; names in any script stay readable."""
    text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False)
    return text.encode() + b"\n"


def read_json_lines(data: bytes) -> list[Any]:
    """Not splitlines(): a key may hold U+2028 and its like, which end no line in JSON lines."""
    return [json.loads(line) for line in data.split(b"\n") if line]


def file_facts(path: epath.PathLike) -> dict[str, Any]:
    """Size and SHA-256 of a file, read in blocks."""
    digest, size = hashlib.sha256(), 0
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_atomically(path: epath.PathLike, data: bytes) -> None:
    """The file has all of `data` or does not change. Raises WriteError if the disk is full."""
    path = epath.Path(path)
    if is_remote(path):
        path.write_bytes(data)  # an object store shows an object only when it is whole
        return
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: epath.Path, pattern: str = ".*", older_than: float = 0.0) -> None:
    """Removes what killed processes left under temporary names at least `older_than` seconds ago.

    A remote folder has none: there objects appear whole, under their own name.
    """
    if is_remote(folder):
        return
    for path in folder.glob(f"{pattern}.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process may be clearing up as well
            if time.time() - path.stat().mtime >= older_than:
                path.rmtree() if path.is_dir() else path.unlink()


def cannot_write(path: epath.PathLike, error: Exception) -> WriteError:
    """The error to raise for a file that could not be written: what failed, and the room left."""
    folder = os.path.dirname(os.fspath(path))
    room = ""
    with contextlib.suppress(OSError):
        room = f"; {shutil.disk_usage(folder).free >> 20} MiB are free in {folder}"
    return WriteError(
        f"{os.fspath(path)}: cannot be written ({error}){room}; what is finished is kept: make "
        "room and run the same command again"
    )
