"""A lease on the folder of a run, kept in the folder itself: two runs never write the same folder.

`guards` acquires it before a run and releases it after. A file lock is not enough: object stores
such as gs:// have none, and many network file systems do not keep them. The lease is a small file
that names its owner. The owner rewrites it every few seconds with a heartbeat count. A run that
finds a lease
  * takes it over at once if the owner has ended (the same machine, and no such process),
  * raises FolderInUse at once if the owner is alive on this machine,
  * otherwise watches the heartbeat: if it does not change for a timeout, the owner is dead.
Clocks of two machines are never compared. If two runs acquire a lease at the same moment, reading
it back decides. An owner that has lost its lease (a frozen process that woke up) detects that and
stops writing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psutil
from etils import epath

from data_pipelines.utils.files import WriteError, is_remote, write_atomically

FILE = "lease.json"

TIMEOUT = 60.0  # seconds without a heartbeat after which an owner on another machine is dead
_HEARTBEATS = 6  # in that time
_SETTLE = 0.2  # seconds until a simultaneous write of another process can be read, on a local disk
_SETTLE_REMOTE = 3.0  # the same in an object store, which is consistent but slow


class FolderInUse(ValueError):
    """Another run writes, or has begun to write, the folder of this one."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that owns a lease.

    Attributes:
      token: random and unique.
      host: name of the machine, for messages.
      machine: equal for processes that can see each other's ids, and different for all others.
      pid: id of the process.
      started: when it started, seconds since 1970 by the machine's clock; process ids are reused.
      heartbeat: increases by one with every renewal.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: float
    heartbeat: int = 0

    @classmethod
    def this_process(cls) -> Owner:
        pid = os.getpid()
        started = psutil.Process(pid).create_time()
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, started)

    def is_alive(self) -> bool | None:
        """Whether the process is alive; None if it is on another machine."""
        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            return (
                abs(process.create_time() - self.started) < 1.0
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to write a folder, owned until `release` or the end of the process.

    Args:
      workdir: the folder, local or `gs://`; created if it does not exist.
      timeout: seconds without a heartbeat after which an owner on another machine is dead.
      report: called with messages about a wait or a takeover.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        timeout: float = TIMEOUT,
        report: Callable[[str], None] = lambda text: None,
    ):
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / FILE
        self._timeout, self._report = timeout, report
        self._owner = Owner.this_process()
        self._lost = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Acquires the lease and begins to renew it. Raises FolderInUse if another run owns it."""
        self._workdir.mkdir(parents=True, exist_ok=True)
        found = self._read()
        if found is not None:
            self._require_dead(found)
        self._write()
        time.sleep(_SETTLE_REMOTE if is_remote(self._path) else _SETTLE)
        now = self._read()
        if now is None or now.token != self._owner.token:
            raise FolderInUse(self._in_use(now))
        self._thread.start()

    def check(self) -> None:
        """Raises FolderInUse if another run is known to have taken the folder. Reads no file."""
        if self._lost:
            raise FolderInUse(self._lost)

    def confirm(self) -> None:
        """Like `check`, but reads the file; call it before something is written."""
        self._verify()
        self.check()

    def release(self) -> None:
        """Deletes the lease, if this process still owns it."""
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
        found = self._read()
        if found is not None and found.token == self._owner.token:
            self._path.unlink(missing_ok=True)

    def _require_dead(self, found: Owner) -> None:
        alive = found.is_alive()
        if alive is None:
            self._report(
                f"{self._workdir} was last written by {found}, which is on another machine: "
                f"waiting {self._timeout:.0f} s for a heartbeat"
            )
            alive = self._is_renewed(found)
        if alive:
            raise FolderInUse(self._in_use(found))
        self._report(
            f"{found}, the last owner of {self._workdir}, has ended: taking over its lease"
        )

    def _is_renewed(self, found: Owner) -> bool:
        """Whether the lease is renewed, or acquired by another, within the timeout."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            time.sleep(self._timeout / _HEARTBEATS / 2)
            now = self._read()
            if now is None:
                return False  # released
            if now != found:
                return True
        return False

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._lost and not self._ended.wait(self._timeout / _HEARTBEATS):
            try:
                self._verify()
                if not self._lost:
                    heartbeat = self._owner.heartbeat + 1
                    self._owner = dataclasses.replace(self._owner, heartbeat=heartbeat)
                    self._write()
                renewed = time.monotonic()
            except FolderInUse as error:
                self._lost = str(error)
            except (OSError, WriteError) as error:  # the store may be reachable again later
                seconds = time.monotonic() - renewed
                if seconds > self._timeout / 2:
                    self._lost = (
                        f"{self._path} could not be renewed for {seconds:.0f} s ({error}); another "
                        "run may own the folder by now"
                    )

    def _verify(self) -> None:
        found = self._read()
        if found is None or found.token != self._owner.token:
            self._lost = self._in_use(found)

    def _in_use(self, other: Owner | None) -> str:
        if other is None:
            return (
                f"{self._path} of this run was deleted, so another run may write the folder; the "
                "same command resumes from the newest checkpoint"
            )
        return (
            f"{self._workdir} is being written by {other}; end that run, or give another "
            f"--workdir. If it is known to be dead, delete {self._path}"
        )

    def _read(self) -> Owner | None:
        try:
            values: dict[str, Any] = json.loads(self._path.read_text())
            return Owner(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise FolderInUse(
                f"{self._path} is no lease, expected JSON of its owner; delete it if no run writes "
                "the folder"
            ) from None

    def _write(self) -> None:
        text = json.dumps(dataclasses.asdict(self._owner), indent=2) + "\n"
        write_atomically(self._path, text.encode())


def _machine() -> str:
    """Identifies the running kernel and the namespace of process ids: a container has its own.

    Host names are not enough: a restarted container has the name of the one before it.
    """
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
