"""A lease on a folder, kept in the folder itself: two processes never write the same folder.

Commands acquire it before they write (training: `supervision.guards`) and release it after. A file
lock is not enough: object stores such as gs:// have none, and many network file systems do not keep
them. The lease is a small file that names its owner. The owner rewrites it every few seconds with a
heartbeat count. A process that finds a lease
  * takes it over at once if the owner has ended (the same machine, and no such process),
  * raises FolderInUse at once if the owner is alive on this machine,
  * otherwise watches the heartbeat: if it does not change for a timeout, the owner is dead.
No wall clock is read: clocks of machines differ, and a clock can be set while an owner lives. If
two processes acquire a lease at the same moment, reading it back decides. An owner that has lost
its lease (a frozen process that woke up) detects that and stops writing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import threading
import time
import types
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

PROC = pathlib.Path("/proc")  # exists on Linux


class FolderInUse(ValueError):
    """Another process writes, or has begun to write, the folder of this one."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that owns a lease.

    Attributes:
      token: random and unique.
      host: name of the machine, for messages.
      machine: equal for processes that can see each other's ids, and different for all others.
      pid: id of the process.
      started: when it started, as `start_time` returns it; process ids are reused.
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
        started = start_time(pid)
        assert started is not None, "this process is alive"
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, started)

    def is_alive(self) -> bool | None:
        """Whether the process is alive; None if this process cannot know: watch its heartbeat."""
        if self.machine != _machine():
            return None
        try:
            started = start_time(self.pid)
        except PermissionError:
            return None
        if started is None:
            return False
        if started == self.started:
            return True
        # Without /proc, a start time can change when the clock is set.
        return False if _has_proc() else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to write a folder, owned until `release` or the end of the process.

    As a context manager it acquires the lease at the start and releases it at the end.

    Args:
      folder: local or `gs://`; created if it does not exist.
      file: name of the lease in the folder; processes that share a folder have one each.
      timeout: seconds without a heartbeat after which an owner on another machine is dead.
      report: called with messages about a wait or a takeover.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        file: str = FILE,
        timeout: float = TIMEOUT,
        report: Callable[[str], None] = lambda text: None,
    ):
        self._folder = epath.Path(folder)
        self._path = self._folder / file
        self._timeout, self._report = timeout, report
        self._owner = Owner.this_process()
        self._lost = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Acquires the lease and begins to renew it.

        Raises FolderInUse if another process owns it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
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
        """Raises FolderInUse if another process is known to have taken it. Reads no file."""
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
                f"{self._folder} was last written by {found}, which is on another machine: "
                f"waiting {self._timeout:.0f} s for a heartbeat"
            )
            alive = self._is_renewed(found)
        if alive:
            raise FolderInUse(self._in_use(found))
        self._report(f"{found}, the last owner of {self._folder}, has ended: taking over its lease")

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
                        "process may own the folder by now"
                    )

    def _verify(self) -> None:
        found = self._read()
        if found is None or found.token != self._owner.token:
            self._lost = self._in_use(found)

    def _in_use(self, other: Owner | None) -> str:
        if other is None:
            return (
                f"{self._path} of this process was deleted, so another one may write the folder; "
                "the same command resumes the work"
            )
        return (
            f"another process writes {self._folder}: {other}; wait for its end or end it, or "
            f"choose another folder. If it is known to be dead, delete {self._path}"
        )

    def _read(self) -> Owner | None:
        try:
            values: dict[str, Any] = json.loads(self._path.read_text())
            return Owner(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise FolderInUse(
                f"{self._path} is no lease, expected JSON of its owner; delete it if no process "
                "writes the folder"
            ) from None

    def _write(self) -> None:
        text = json.dumps(dataclasses.asdict(self._owner), indent=2) + "\n"
        write_atomically(self._path, text.encode())


def start_time(pid: int) -> float | None:
    """When a process of this machine started; None if there is none, or if it has ended.

    Linux: clock ticks since boot, which are fixed for the life of the process. psutil's
    `create_time` adds the wall-clock time of boot to them, which changes whenever the clock is set.
    Other systems: seconds since 1970 as the system recorded them.

    Raises PermissionError if the process exists and is hidden from this one.
    """
    if not _has_proc():
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
        except psutil.NoSuchProcess:
            return None
        except psutil.AccessDenied as error:
            raise PermissionError(str(error)) from error
    try:
        text = (PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        _require_none(pid)
        return None
    # man proc_pid_stat: "pid (name) state ppid ...", and the name may hold any character.
    state, *fields = text[text.rindex(b")") + 1 :].split()
    return None if state in (b"Z", b"X") else int(fields[18])


def _has_proc() -> bool:
    return (PROC / "self/stat").exists()


def _require_none(pid: int) -> None:
    """Raises PermissionError if a process without an entry in /proc exists (option hidepid)."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)  # sends no signal
        raise PermissionError(f"process {pid} exists, but /proc does not show it")


def _machine() -> str:
    """Identifies the running kernel and the namespace of process ids: a container has its own.

    Host names are not enough: a restarted container has the name of the one before it.
    """
    if not _has_proc():
        return f"{socket.gethostname()}/{uuid.getnode():x}"
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat(PROC / 'self/ns/pid').st_ino}"
