"""Two runs never write one folder: a lease on it, kept in the folder itself.

A file lock would not do: object stores such as gs:// have none, and network file systems seldom
keep them. The lease is a small file that names its holder and that the holder rewrites every few
seconds, with a count. Whoever finds a lease takes it over at once if its holder has provably ended
(the same machine, and no such process), refuses at once if the holder is alive here, and otherwise
watches the count: it moves, or it has stood still for so long that the holder is dead. No clocks of
two machines are compared. Two that take a lease in the same moment are told apart by reading it
back, and a holder that has lost its lease (frozen, then woken) finds that out and stops writing.
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

SILENCE = 60.0  # seconds after which a holder that is out of sight counts as dead
_BEATS = 6  # in that time
_SETTLE = 0.2  # seconds until what another writes at the same moment can be read; of a local disk
_SETTLE_REMOTE = 3.0  # of an object store, which is consistent but slow


class FolderInUse(ValueError):
    """Another run writes, or has begun to write, the folder of this one."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Attributes:
      token: random; this holder and no other.
      host: for people.
      machine: the same for processes that see each other's numbers, and for no others.
      pid: number of the process.
      started: when it started, seconds since 1970 by the machine's clock; numbers come again.
      beat: grows by one with every renewal.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: float
    beat: int = 0

    @classmethod
    def this_process(cls) -> Holder:
        pid = os.getpid()
        started = psutil.Process(pid).create_time()
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, started)

    def fate(self) -> bool | None:
        """Whether the process is alive, or None where that cannot be seen from here."""
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
    """The right to write a folder, held until `release` or the end of the process.

    Args:
      workdir: the folder, local or `gs://`; made if it is not there.
      silence: seconds without renewal after which a holder out of sight counts as dead.
      say: told what is waited for.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        silence: float = SILENCE,
        say: Callable[[str], None] = lambda text: None,
    ):
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / FILE
        self._silence, self._say = silence, say
        self._holder = Holder.this_process()
        self._lost = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Takes the lease and begins to renew it. Raises FolderInUse if another run has it."""
        self._workdir.mkdir(parents=True, exist_ok=True)
        found = self._read()
        if found is not None:
            self._expect_dead(found)
        self._write()
        time.sleep(_SETTLE_REMOTE if is_remote(self._path) else _SETTLE)
        now = self._read()
        if now is None or now.token != self._holder.token:
            raise FolderInUse(self._in_use(now))
        self._thread.start()

    def check(self) -> None:
        """Raises FolderInUse if another run was found to have taken the folder. Reads nothing."""
        if self._lost:
            raise FolderInUse(self._lost)

    def confirm(self) -> None:
        """Like `check`, but reads the file: for the moment before something is written."""
        self._look()
        self.check()

    def release(self) -> None:
        """Gives the lease back, if it is still this process's."""
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
        found = self._read()
        if found is not None and found.token == self._holder.token:
            self._path.unlink(missing_ok=True)

    def _expect_dead(self, found: Holder) -> None:
        alive = found.fate()
        if alive is None:
            self._say(
                f"{self._workdir} was last written by {found}, which cannot be seen from here: "
                f"waiting {self._silence:.0f} s for a sign of life from it"
            )
            alive = self._moves(found)
        if alive:
            raise FolderInUse(self._in_use(found))
        self._say(f"{found}, which wrote {self._workdir} before, has ended: taking over")

    def _moves(self, found: Holder) -> bool:
        """Whether the lease is renewed, or taken by another, while it is watched."""
        deadline = time.monotonic() + self._silence
        while time.monotonic() < deadline:
            time.sleep(self._silence / _BEATS / 2)
            now = self._read()
            if now is None:
                return False  # given back
            if now != found:
                return True
        return False

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._lost and not self._ended.wait(self._silence / _BEATS):
            try:
                self._look()
                if not self._lost:
                    self._holder = dataclasses.replace(self._holder, beat=self._holder.beat + 1)
                    self._write()
                renewed = time.monotonic()
            except FolderInUse as error:
                self._lost = str(error)
            except (OSError, WriteError) as error:  # a store out of reach comes back
                silent = time.monotonic() - renewed
                if silent > self._silence / 2:
                    self._lost = (
                        f"{self._path} could not be renewed for {silent:.0f} s ({error}); another "
                        "run may take the folder by now"
                    )

    def _look(self) -> None:
        found = self._read()
        if found is None or found.token != self._holder.token:
            self._lost = self._in_use(found)

    def _in_use(self, other: Holder | None) -> str:
        if other is None:
            return (
                f"{self._path} of this run was deleted, so that another may write the folder; "
                "start it again to go on from the newest checkpoint"
            )
        return (
            f"{self._workdir} is being written by {other}; end that run, or choose another "
            f"--workdir. If it is known to be dead, delete {self._path}"
        )

    def _read(self) -> Holder | None:
        try:
            values: dict[str, Any] = json.loads(self._path.read_text())
            return Holder(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise FolderInUse(
                f"{self._path} is not what a run writes; if no run writes the folder, delete it"
            ) from None

    def _write(self) -> None:
        text = json.dumps(dataclasses.asdict(self._holder), indent=2) + "\n"
        write_atomically(self._path, text.encode())


def _machine() -> str:
    """Names the running kernel and, in it, the space of process numbers: a container has its own.

    Host names do not do: a container that is started again has the name of the one before it.
    """
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
