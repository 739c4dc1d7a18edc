"""Keeping a few files open between reads, for threads and across forks."""

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


class Opened(Generic[T]):
    """The few files used last, each lent to one thread at a time."""

    def __init__(self, opener: Callable[[str], T], most: int) -> None:
        self._opener, self._most = opener, most
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._files: collections.OrderedDict[str, T] = collections.OrderedDict()

    @contextlib.contextmanager
    def borrow(self, path: str) -> Iterator[T]:
        """The open file at a path; closed, and opened anew next time, if its use raises."""
        if self._owner != os.getpid():
            # A forked process shares the positions of its parent's files, and may have copied
            # their lock while it was held: start from nothing.
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
            if len(self._files) > self._most:
                self._files.popitem(last=False)[1].close()
