"""The watchdog: ends a hung run with status 70, so that its launcher can restart it.

`guards` starts it; every `Guards.check` is a heartbeat.
"""

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

# EX_SOFTWARE in BSD's sysexits.h.
STATUS = 70

# Extra seconds for the first piece of work of each kind, which is compiled.
COMPILATION_TIMEOUT = 3600.0


class Watchdog:
    """After a timeout without a heartbeat, prints the stacks of all threads and ends the process
    with status 70.

    Use it as a context manager.

    Args:
      timeout: max seconds between heartbeats; 0 for no limit.
      compilation_timeout: extra seconds for the first piece of work of each kind.
      output: where the stacks are printed; needs a file descriptor. Default: stderr.
    """

    def __init__(
        self,
        timeout: float,
        *,
        compilation_timeout: float = COMPILATION_TIMEOUT,
        output: TextIO | None = None,
    ):
        self._timeout, self._compilation_timeout = timeout, compilation_timeout
        self._output = output
        self._known: set[str] = set()
        self._ended = threading.Event()
        self.heartbeat("starting")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._timeout:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def heartbeat(self, work: str) -> None:
        """Restarts the timeout.

        Args:
          work: the kind of the next piece of work.
        """
        self._limit = self._timeout + (0.0 if work in self._known else self._compilation_timeout)
        self._work = work
        self._known.add(work)
        self._deadline = time.monotonic() + self._limit

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Expects no heartbeat inside the context, for work that may take any time."""
        self._deadline = math.inf
        yield
        self.heartbeat("starting")

    def _watch(self) -> None:
        while not self._ended.wait(min(self._timeout / 10, 1.0)):
            if time.monotonic() > self._deadline:
                self._end()

    def _end(self) -> None:
        print(
            f"watchdog: no heartbeat in {self._limit:.0f} s ({self._work}); the stacks of all "
            f"threads follow, and the process ends with status {STATUS}. The same command resumes "
            "from the newest checkpoint. If the work takes longer, raise config.watchdog.",
            file=self._output or sys.stderr,
            flush=True,
        )
        stacks = self._output or sys.__stderr__  # sys.stderr may have no file descriptor
        if stacks is not None:
            faulthandler.dump_traceback(stacks, all_threads=True)
        os._exit(STATUS)
