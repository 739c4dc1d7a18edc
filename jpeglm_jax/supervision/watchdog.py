"""Ends a run that hangs, so that whatever started it can start it again."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

# "Internal software error" in BSD's sysexits.h.
STATUS = 70

# What a kind of work may take the first time, when it is compiled.
COMPILING = 3600.0


class Watchdog:
    """Watches for signs of life; without one for too long, prints the stacks of all threads and
    ends the process with status 70.

    Use it as a context manager.

    Args:
      seconds: the longest silence; 0 for any.
      compiling: seconds more for the first piece of work of each kind.
      output: where the stacks go; needs a file descriptor.
    """

    def __init__(
        self, seconds: float, *, compiling: float = COMPILING, output: TextIO | None = None
    ):
        self._seconds, self._compiling = seconds, compiling
        self._output = output or sys.__stderr__
        self._known: set[str] = set()
        self._ended = threading.Event()
        self.alive("starting")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def alive(self, work: str) -> None:
        """A sign of life.

        Args:
          work: the kind of what is done next.
        """
        self._limit = self._seconds + (0.0 if work in self._known else self._compiling)
        self._work = work
        self._known.add(work)
        self._deadline = time.monotonic() + self._limit

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """While what takes any time goes on."""
        self._deadline = math.inf
        yield
        self.alive("starting")

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds / 10, 1.0)):
            if time.monotonic() > self._deadline:
                self._end()

    def _end(self) -> None:
        output = self._output
        print(
            f"watchdog: nothing was finished in {self._limit:.0f} s ({self._work}); the stacks of "
            f"all threads follow, and the process ends with status {STATUS}. The same command goes "
            "on from the newest checkpoint. If work takes so long, raise config.watchdog.",
            file=output,
            flush=True,
        )
        if output is not None:
            faulthandler.dump_traceback(output, all_threads=True)
        os._exit(STATUS)
