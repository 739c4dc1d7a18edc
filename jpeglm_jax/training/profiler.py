"""Traces a few steps of a run, for TensorBoard (tab Profile) and https://ui.perfetto.dev."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import jax
from etils import epath

from data_pipelines.utils.files import is_remote


class Profiler:
    """Traces the steps START to STOP - 1.

    The trace lies in `workdir/tensorboard/plugins/profile/TIME`: `*.xplane.pb` for TensorBoard
    and `perfetto_trace.json.gz`. The times of `perf/tokens_per_second` include writing it.

    Args:
      steps: "START:STOP", or empty for none.
      workdir: the run's folder, local.

    Raises:
      ValueError: steps of another form, or a remote folder.
    """

    def __init__(self, steps: str, workdir: epath.PathLike):
        self._start = self._stop = 0
        self._folder = epath.Path(workdir) / "tensorboard"
        self._tracing = False
        if not steps:
            return
        found = re.fullmatch(r"(\d+):(\d+)", steps)
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(f"profile is {steps!r}; expected START:STOP, steps such as 100:105")
        if is_remote(self._folder):
            raise ValueError(f"a profile needs a local --workdir to be written to, not {workdir}")
        self._start, self._stop = int(found[1]), int(found[2])

    def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """To be entered around the dispatch of a step; begins the trace before the first."""
        if not self._start <= step < self._stop:
            return contextlib.nullcontext()
        if not self._tracing:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def dispatched(self, step: int, values: Any) -> None:
        """Ends the trace after its last step, for which alone it waits."""
        if self._tracing and step == self._stop - 1:
            jax.block_until_ready(values)
            self.close()

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the trace if the run ends within it."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
