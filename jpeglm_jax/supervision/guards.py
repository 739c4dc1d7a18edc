"""What stands guard over a run: the lease on its folder, the ear for signals, the watchdog."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from etils import epath

from jpeglm_jax.parallel import distributed
from jpeglm_jax.supervision.lease import Lease
from jpeglm_jax.supervision.preemption import Interruption
from jpeglm_jax.supervision.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Guards:
    """See the module of each; in every process, but only the main one has the lease."""

    interruption: Interruption
    watchdog: Watchdog
    lease: Lease | None

    def check(self, work: str) -> None:
        """To be called before every piece of work, equally often in all processes.

        Args:
          work: its kind; the first of a kind may take longer, for it is compiled.

        Raises:
          Interrupted: the run was told to stop.
          FolderInUse: another run has taken the folder.
        """
        self.watchdog.alive(work)
        if self.lease is not None:
            self.lease.check()
        self.interruption.check()

    def confirm(self) -> None:
        """Raises FolderInUse if another run has taken the folder: before a checkpoint."""
        if self.lease is not None:
            self.lease.confirm()


@contextlib.contextmanager
def guarded(workdir: epath.PathLike, watchdog: float) -> Iterator[Guards]:
    """Guards a run while it is entered.

    Args:
      workdir: the run's folder; made if it is not there.
      watchdog: seconds without a sign of life that end the run; 0: none.

    Raises FolderInUse if another run writes the folder.
    """
    with Interruption() as interruption, Watchdog(watchdog) as watch:
        lease = Lease(workdir, say=_say) if distributed.is_main() else None
        try:
            distributed.main_first(lease.acquire if lease else lambda: None)
            yield Guards(interruption, watch, lease)
        finally:
            if lease is not None:
                lease.release()


def _say(text: str) -> None:
    print(text, flush=True)
