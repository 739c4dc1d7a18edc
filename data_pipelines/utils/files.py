"""Atomic writes, hashes and JSON for files on local disks and object stores."""

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


class StorageUnavailable(RuntimeError):
    """Storage is gone or does not answer: nothing is known to be wrong with the files in it.

    It is no ValueError and no OSError, so that code which rejects single files does not catch it.
    """


# Path prefixes of object stores, with the package that opens each.
SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}


def is_remote(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)


def unknown_scheme(path: str) -> str | None:
    """A sentence about a path whose scheme no backend opens, as in `https://`; None for others."""
    scheme, separator, rest = path.partition("://")
    if not separator or scheme in SCHEMES:
        return None
    known = " or ".join(f"{name}://" for name in SCHEMES)
    advice = f"write {'/' + rest.lstrip('/')!r}" if scheme == "file" else "copy the files first"
    return f"{path!r} begins with {scheme}://, expected a local path, {known}: {advice}"


def missing_driver(error: BaseException) -> str | None:
    """A sentence about the package that an object store lacks; None for other errors."""
    text = str(error)
    if not isinstance(error, ImportError):
        return None
    if "gcsfs" in text or "gs://" in text:
        return "gs:// needs the extra [gcs], which is not installed: pip install -e '.[gcs]'"
    if "s3fs" in text:
        return "s3:// needs the package s3fs, which is not installed: pip install s3fs"
    return None


def to_json(value: Any, indent: int | None = 1) -> bytes:
    """Encodes a value as UTF-8 JSON with sorted keys: equal values give equal bytes."""
    text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False)
    return text.encode() + b"\n"


def read_json_lines(data: bytes) -> list[Any]:
    """Decodes JSON lines."""
    # Not splitlines(): it also splits at U+2028 and others, which JSON strings may contain.
    return [json.loads(line) for line in data.split(b"\n") if line]


def file_facts(path: epath.PathLike) -> dict[str, Any]:
    """Returns the size ("bytes") and the hex SHA-256 ("sha256") of a file, read in blocks."""
    digest, size = hashlib.sha256(), 0
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_atomically(path: epath.PathLike, data: bytes) -> None:
    """Replaces a file by `data` or leaves it unchanged. Raises WriteError if the disk is full."""
    path = epath.Path(path)
    if is_remote(path):
        path.write_bytes(data)  # an object becomes visible only when it is complete
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
    """Removes temporary files of killed processes that are at least `older_than` seconds old.

    A remote folder has none: objects are written under their final name.
    """
    if is_remote(folder):
        return
    for path in folder.glob(f"{pattern}.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process may remove it too
            if time.time() - path.stat().mtime >= older_than:
                path.rmtree() if path.is_dir() else path.unlink()


def cannot_write(path: epath.PathLike, error: Exception) -> WriteError:
    """Makes the WriteError for a file that could not be written, with the free space."""
    folder = os.path.dirname(os.fspath(path))
    space = ""
    with contextlib.suppress(OSError):
        space = f"; {shutil.disk_usage(folder).free >> 20} MiB are free in {folder}"
    return WriteError(
        f"{os.fspath(path)}: cannot be written ({error}){space}; finished files are kept: free "
        "some space and run the same command again"
    )
