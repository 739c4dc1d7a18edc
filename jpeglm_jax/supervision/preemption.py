"""Preemption: a run that receives SIGTERM saves a checkpoint and exits with status 75.

Clusters send SIGTERM before they take a machine away; Ctrl-C sends SIGINT. `guards` listens for
both, and the training loop saves the checkpoint when `Interruption.check` raises.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL in BSD's sysexits.h: nothing is lost, and the same command resumes.
STATUS = 75


class Interrupted(SystemExit):
    """A signal asked the run to stop. As a SystemExit it is not caught by `except Exception`."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class Interruption:
    """Listens for SIGTERM, and for SIGINT in a run of one process, inside its context.

    In one process the signal raises Interrupted at once, wherever the main thread is, but within
    `deferred` only from `check`. With several processes JAX's preemption service listens for
    SIGTERM (within a second) and notifies all of them. They stop together, at the first call of
    `check` that none of them had made by then. A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        self._requested = self._deferred = False
        self._checks = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interruption:
        # Python allows signal handlers in the main thread only.
        if self._alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        forked = os.getpid() != self._process  # in a worker, which inherited this handler
        if forked or (self._requested and number == signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._requested = True
        if not self._deferred:
            raise Interrupted

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers signals received inside the context to the next `check`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """Raises Interrupted if a signal asked the run to stop; in all processes at the same call.

        Every process must call it equally often. It does not block.
        """
        if not self._alone:
            self._checks += 1
            self._requested |= multihost_utils.reached_preemption_sync_point(self._checks)
        if self._requested:
            raise Interrupted
