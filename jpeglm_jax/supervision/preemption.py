"""Being told to stop: a run that is sent SIGTERM keeps what it has and ends with status 75.

Clusters send SIGTERM before they take a machine away; a person sends SIGINT with Ctrl-C.
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

# "Temporary failure, try again" in BSD's sysexits.h: nothing is lost, the same command goes on.
STATUS = 75


class Interrupted(SystemExit):
    """The run was told to stop. As an exit of the program, it passes by handlers of errors."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class Interruption:
    """Listens for SIGTERM, and for SIGINT in a run of one process, while it is entered.

    In one process the signal raises Interrupted at once, wherever the main thread is, but within
    `deferred` only from `check`. With several processes JAX's preemption service listens for
    SIGTERM (within a second), tells all of them, and they stop together: at the first call of
    `check` that none of them had made by then. A second Ctrl-C ends the process on the spot.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        self._asked = self._deferred = False
        self._checks = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interruption:
        # Elsewhere than in the main thread Python allows no handlers, and gives them no signals.
        if self._alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        forked = os.getpid() != self._process  # a worker's, which has inherited this handler
        if forked or (self._asked and number == signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._asked = True
        if not self._deferred:
            raise Interrupted

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals that come within wait for `check`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """Raises Interrupted if the run was told to stop; in all processes at the same call.

        Every process must call it equally often. Waits for nothing.
        """
        if not self._alone:
            self._checks += 1
            self._asked |= multihost_utils.reached_preemption_sync_point(self._checks)
        if self._asked:
            raise Interrupted
