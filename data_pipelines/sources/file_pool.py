"""Keeps a few files open between reads; safe for threads and after forks."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class FilePool(Generic[T]):
    """The most recently used files, each lent to one thread at a time."""

    def __init__(self, opener: Callable[[str], T], max_open: int) -> None:
        self._opener, self._max_open = opener, max_open
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._files: collections.OrderedDict[str, T] = collections.OrderedDict()

    @contextlib.contextmanager
    def borrow(self, path: str) -> Iterator[T]:
        """Lends the open file at a path; closes it if its use raises."""
        if self._owner != os.getpid():
            # A forked process shares the file positions of its parent, and may have copied a held
            # lock: open new files.
            self._lock = threading.Lock()
            self._files = collections.OrderedDict()
            self._owner = os.getpid()
        with self._lock:
            file = self._files.pop(path, None) or self._opener(path)
            try:
                yield file
            except BaseException:
                file.close()
                raise
            self._files[path] = file
            if len(self._files) > self._max_open:
                self._files.popitem(last=False)[1].close()
