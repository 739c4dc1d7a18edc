"""Preemption: a run that receives SIGTERM saves a checkpoint and exits with status 75.

Clusters send SIGTERM before they take a machine away; Ctrl-C sends SIGINT. `guards` listens for
both, and the training loop saves the checkpoint when `Interruption.check` raises.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL in BSD's sysexits.h: nothing is lost, and the same command resumes.
STATUS = 75

# As a shell reports a process that Ctrl-C ended: 128 + SIGINT.
STATUS_AT_ONCE = 130


class Interrupted(SystemExit):
    """A signal asked the run to stop. As a SystemExit it is not caught by `except Exception`."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class Interruption:
    """Listens for SIGTERM, and for SIGINT in a run of one process, inside its context.

    In one process the signal raises Interrupted at once, wherever the main thread is, but within
    `deferred` only from `check`. With several processes JAX's preemption service listens for
    SIGTERM (within a second) and notifies all of them. They stop together, at the first call of
    `check` that none of them had made by then. A second Ctrl-C ends the process at once, also while
    the main thread waits in a long computation: see `_SecondCtrlC`.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        self._requested = self._deferred = False
        self._checks = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._second: _SecondCtrlC | None = None

    def __enter__(self) -> Interruption:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            if self._alone:
                for number in (signal.SIGTERM, signal.SIGINT):
                    self._before[number] = signal.signal(number, self._receive)
            self._second = _SecondCtrlC()
        return self

    def __exit__(self, *_: object) -> None:
        if self._second is not None:
            self._second.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:  # in a forked worker, which inherited this handler
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


class _SecondCtrlC:
    """Ends the process at the first SIGINT that follows a SIGINT or SIGTERM.

    Python calls signal handlers in the main thread between two bytecodes, so never while the main
    thread waits for the compiler or for a step. The interpreter also writes the number of each
    signal to a file descriptor when the signal arrives; a thread reads it here.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        _watching.append(self)
        threading.Thread(target=self._watch, name="second Ctrl-C", daemon=True).start()

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        _watching.remove(self)
        self._writer.close()  # ends the thread

    def _watch(self) -> None:
        requested = False
        with self._reader:
            while numbers := self._reader.recv(64):
                for number in numbers:
                    if requested and number == signal.SIGINT:
                        os.write(2, _AT_ONCE)  # the main thread may hold the lock of sys.stderr
                        os._exit(STATUS_AT_ONCE)
                    requested |= number in (signal.SIGINT, signal.SIGTERM)


_AT_ONCE = b"""
second Ctrl-C: ended at once without a checkpoint; the same command resumes from the newest one
"""

_watching: list[_SecondCtrlC] = []  # of this process


_fork = threading.local()  # mask: the signals that were blocked before a fork


def _block_signals() -> None:
    """Keeps Ctrl-C pending while a worker is forked.

    Until `_stop_watching_in_child` a signal of the worker would be written to the socket of its
    parent, and Python forgets the signals that a new process receives before its hooks run.
    """
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _stop_watching_in_child() -> None:
    """A forked worker gets Ctrl-C as well, and must not write to the socket of its parent."""
    if _watching:
        _watching.clear()
        signal.set_wakeup_fd(-1)
    _unblock_signals()


os.register_at_fork(
    before=_block_signals,
    after_in_parent=_unblock_signals,
    after_in_child=_stop_watching_in_child,
)
