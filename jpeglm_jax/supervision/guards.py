"""The guards of a training run: the lease on its folder, preemption signals and the watchdog.

The training loop calls `Guards.check` before every piece of work.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from etils import epath

from data_pipelines.utils.lease import Lease
from jpeglm_jax.parallel import distributed
from jpeglm_jax.supervision.preemption import Interruption
from jpeglm_jax.supervision.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Guards:
    """The guards of one process; only the main process has the lease. See the module of each."""

    interruption: Interruption
    watchdog: Watchdog
    lease: Lease | None

    def check(self, work: str) -> None:
        """Checks all guards; call it before every piece of work, equally often in all processes.

        Args:
          work: its kind; the first of a kind may take longer, because it is compiled.

        Raises:
          Interrupted: a signal asked the run to stop.
          FolderInUse: another process has taken the folder.
        """
        self.watchdog.heartbeat(work)
        if self.lease is not None:
            self.lease.check()
        self.interruption.check()

    def confirm(self) -> None:
        """Raises FolderInUse if another process took the folder. Call it before a checkpoint."""
        if self.lease is not None:
            self.lease.confirm()


@contextlib.contextmanager
def guarded(workdir: epath.PathLike, watchdog: float) -> Iterator[Guards]:
    """Guards a run inside the context.

    Args:
      workdir: the run's folder; created if it does not exist.
      watchdog: seconds without a heartbeat after which the run is ended; 0: no watchdog.

    Raises FolderInUse if another process writes the folder.
    """
    with Interruption() as interruption, Watchdog(watchdog) as watch:
        lease = Lease(workdir, report=_print) if distributed.is_main() else None
        try:
            distributed.main_first(lease.acquire if lease else lambda: None)
            yield Guards(interruption, watch, lease)
        finally:
            if lease is not None:
                lease.release()


def _print(text: str) -> None:
    print(text, flush=True)
