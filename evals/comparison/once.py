"""Work that is done once, by whichever process comes first, and whose results are files.

Several processes share a folder of results: work in use by another process raises FolderInUse, and
`share` comes back to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from data_pipelines.utils.lease import FolderInUse, Lease
from evals.reporting.results import write_json

Task = Callable[[], object]

_WAIT = 5.0  # seconds, where all that is left is in use by other processes


class OutOfTime(Exception):
    """The time that a process was given is over; the same command resumes."""


class Deadline:
    """When a process must end, so that a long comparison runs in pieces.

    Args:
      minutes: from now; 0 for no end.
    """

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes if minutes else None

    def check(self) -> None:
        """Raises OutOfTime after the end."""
        if self._end is not None and time.monotonic() >= self._end:
            raise OutOfTime

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Around training, which saves a checkpoint when the end is reached."""
        if self._end is None:
            yield
            return
        remaining = max(0.0, self._end - time.monotonic())
        timer = threading.Timer(remaining, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class Once:
    """Results of work in a folder: what is there is read, what is not is done.

    Args:
      folder: of the results, a JSON file each.
      deadline: after which no work is begun.
      say: called with the name of work that begins.
    """

    def __init__(self, folder: epath.Path, deadline: Deadline, say: Callable[[str], None]):
        self._folder, self._deadline, self._say = folder, deadline, say

    def __call__(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the result of `work`, done now if it has none in the folder.

        Raises:
          OutOfTime: the deadline has passed.
          FolderInUse: another process is at it.
        """
        path = self._folder / f"{name}.json"
        if path.exists():
            return _read(path)
        self._deadline.check()
        with Lease(self._folder, file=f"{name}.lease", report=self._say):
            if path.exists():  # by another process, just now
                return _read(path)
            self._say(name)
            result = work()
            write_json(path, result)
        return result


def _read(path: epath.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def share(tasks: Iterable[Task], deadline: Deadline) -> None:
    """Does tasks that other processes do, too: one that is in use is tried again after the others.

    Raises OutOfTime at the end of the time.
    """
    waiting = list(tasks)
    while waiting:
        in_use = []
        for task in waiting:
            try:
                task()
            except FolderInUse:
                in_use.append(task)
        if len(in_use) == len(waiting):
            deadline.check()
            time.sleep(_WAIT)
        waiting = in_use
