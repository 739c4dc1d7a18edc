"""One program in many processes: how they find each other, and how they wait for the first.

JAX does the finding. On Cloud TPU VMs, GKE, SLURM and Open MPI it knows how (`--distributed`);
anywhere else the address of process 0, the number of processes and the own number are given, by
flags or by environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils


class StartUpError(ValueError):
    """The processes of a run cannot find each other."""


class MainProcessError(RuntimeError):
    """What process 0 does for all has failed there."""


def define_flags() -> None:
    flags.DEFINE_boolean(
        "distributed", False, "Join the processes of this TPU slice, JobSet, SLURM step or MPI job."
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, by hand; or JAX_COORDINATOR_ADDRESS."
    )
    flags.DEFINE_integer("num_processes", None, "By hand; or JAX_NUM_PROCESSES.")
    flags.DEFINE_integer("process_id", None, "By hand, from 0; or JAX_PROCESS_ID.")


def start_from_flags() -> None:
    """Joins the other processes, if flags or environment say that there are any."""
    values = flags.FLAGS
    start(values.distributed, values.coordinator, values.num_processes, values.process_id)


def start(
    detect: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes; call it before anything else of JAX. Alone, does nothing.

    Args:
      detect: let JAX find the cluster out.
      coordinator: HOST:PORT of process 0; default the variable JAX_COORDINATOR_ADDRESS.
      num_processes: default JAX_NUM_PROCESSES.
      process_id: 0 <= process_id < num_processes; default JAX_PROCESS_ID.

    Raises:
      StartUpError: half of what is needed was given, or no cluster was found, or not all
        processes came.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _given(num_processes, "num_processes", "JAX_NUM_PROCESSES")
    process_id = _given(process_id, "process_id", "JAX_PROCESS_ID")
    by_hand = (coordinator, num_processes, process_id)
    if not detect and all(value is None for value in by_hand):
        return
    if not detect and any(value is None for value in by_hand):
        raise StartUpError(
            f"coordinator is {coordinator!r}, num_processes {num_processes}, process_id "
            f"{process_id}: expected all three, by flags or by JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID; or --distributed where JAX can find them out"
        )
    if None not in by_hand:
        assert coordinator is not None and num_processes is not None and process_id is not None
        if not 0 <= process_id < num_processes:
            raise StartUpError(
                f"process_id is {process_id}; expected 0 to num_processes - 1 = {num_processes - 1}"
            )
        if not coordinator.rpartition(":")[2].isdigit():
            raise StartUpError(f"coordinator is {coordinator!r}; expected HOST:PORT")
    try:
        # Given by hand, every device of the machine is this process's.
        method = None if detect else "deactivate"
        jax.distributed.initialize(
            coordinator, num_processes, process_id, cluster_detection_method=method
        )
    except ValueError as error:
        raise StartUpError(
            f"--distributed found no cluster that JAX knows ({error}); give --coordinator, "
            "--num_processes and --process_id"
        ) from error
    except RuntimeError as error:
        raise StartUpError(f"the processes did not come together: {error}") from error


def _given(value: int | None, name: str, variable: str) -> int | None:
    if value is not None or variable not in os.environ:
        return value
    try:
        return int(os.environ[variable])
    except ValueError:
        raise StartUpError(
            f"{variable} is {os.environ[variable]!r}; expected {name}, a whole number"
        ) from None


def is_main() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def main_first(work: Callable[[], object]) -> None:
    """Does `work` in the main process while the others wait for it.

    Raises:
      What `work` raises, in the main process; MainProcessError in the others, so that none waits
        for one that has given up.
    """
    if jax.process_count() == 1:
        work()
        return
    error: BaseException | None = None
    if is_main():
        try:
            work()
        except BaseException as raised:
            error = raised
    failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
    if error is not None:
        raise error
    if failed:
        raise MainProcessError("process 0 has given up before the first step; its log says why")
