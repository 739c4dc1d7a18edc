"""The processes of a run: initialisation of `jax.distributed`, work of the main process first, and
lines of output that name their process.

The commands call `start_from_flags` before anything else of JAX. On Cloud TPU VMs, GKE, SLURM and
Open MPI JAX detects the cluster (`--distributed`). Elsewhere flags or environment variables set the
address of process 0, the number of processes and the id of this process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO, cast

import jax
import numpy as np
from absl import flags, logging
from jax.experimental import multihost_utils


class StartUpError(ValueError):
    """The processes of a run cannot find each other."""


class MainProcessError(RuntimeError):
    """Process 0 has failed in work that the others waited for."""


def define_flags() -> None:
    flags.DEFINE_boolean(
        "distributed", False, "Join the processes of this TPU slice, JobSet, SLURM step or MPI job."
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0; default JAX_COORDINATOR_ADDRESS."
    )
    flags.DEFINE_integer("num_processes", None, "Default JAX_NUM_PROCESSES.")
    flags.DEFINE_integer("process_id", None, "From 0; default JAX_PROCESS_ID.")


def start_from_flags() -> None:
    """Joins the other processes, if flags or environment variables set any."""
    values = flags.FLAGS
    start(values.distributed, values.coordinator, values.num_processes, values.process_id)


def start(
    detect: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes; call it before anything else of JAX. One process does nothing.

    Args:
      detect: let JAX detect the cluster.
      coordinator: HOST:PORT of process 0; default the variable JAX_COORDINATOR_ADDRESS.
      num_processes: default JAX_NUM_PROCESSES.
      process_id: 0 <= process_id < num_processes; default JAX_PROCESS_ID.

    Raises:
      StartUpError: the settings are incomplete, no cluster was detected, or not all processes
        joined.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _setting(num_processes, "num_processes", "JAX_NUM_PROCESSES")
    process_id = _setting(process_id, "process_id", "JAX_PROCESS_ID")
    settings = (coordinator, num_processes, process_id)
    if not detect and all(value is None for value in settings):
        return
    if not detect and any(value is None for value in settings):
        raise StartUpError(
            f"coordinator is {coordinator!r}, num_processes {num_processes}, process_id "
            f"{process_id}: expected all three, by flags or by JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID; or --distributed where JAX detects the cluster"
        )
    if None not in settings:
        assert coordinator is not None and num_processes is not None and process_id is not None
        if not 0 <= process_id < num_processes:
            raise StartUpError(
                f"process_id is {process_id}; expected 0 to num_processes - 1 = {num_processes - 1}"
            )
        if not coordinator.rpartition(":")[2].isdigit():
            raise StartUpError(f"coordinator is {coordinator!r}; expected HOST:PORT")
    try:
        # Without detection every device of the machine belongs to this process.
        method = None if detect else "deactivate"
        jax.distributed.initialize(
            coordinator, num_processes, process_id, cluster_detection_method=method
        )
    except ValueError as error:
        raise StartUpError(
            f"--distributed detected no cluster ({error}); give --coordinator, "
            "--num_processes and --process_id"
        ) from error
    except RuntimeError as error:
        raise StartUpError(f"not all processes joined ({error}); see their logs") from error
    if jax.process_count() > 1:
        _label_output()


def _label_output() -> None:
    """Puts time and process number before each line that this process prints or logs."""
    sys.stdout = cast(TextIO, LabelledLines(sys.stdout, jax.process_index()))
    sys.stderr = cast(TextIO, LabelledLines(sys.stderr, jax.process_index()))
    logging.get_absl_handler().python_handler.setStream(sys.stderr)


class LabelledLines:
    """A text stream that writes the time (UTC) and a process number before each line.

    Launchers merge the outputs of all processes into one log.
    """

    def __init__(self, stream: TextIO, process: int):
        self._stream, self._process = stream, process
        self._lock = threading.Lock()
        self._in_line = False

    def write(self, text: str) -> int:
        label = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} process {self._process}: "
        with self._lock:
            for line in text.splitlines(keepends=True):
                self._stream.write(line if self._in_line else label + line)
                self._in_line = not line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _setting(value: int | None, name: str, variable: str) -> int | None:
    if value is not None or variable not in os.environ:
        return value
    try:
        return int(os.environ[variable])
    except ValueError:
        raise StartUpError(
            f"{variable} is {os.environ[variable]!r}; expected {name}, a whole number"
        ) from None


def is_main() -> bool:
    """Whether this is the process that writes and prints for all."""
    return jax.process_index() == 0


def main_first(work: Callable[[], object]) -> None:
    """Does `work` in the main process while the others wait for it.

    Raises:
      In the main process the error of `work`; MainProcessError in the others, so that none waits
        for a failed process.
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
        raise MainProcessError("process 0 failed before the first step; its log has the reason")
