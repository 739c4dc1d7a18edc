"""The loop of a training run: one step after the other, and what is due between them.

The same loop trains a language model and a learned tokenizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.sharding import BATCH_AXES
from jpeglm_jax.supervision.guards import Guards
from jpeglm_jax.supervision.preemption import Interrupted
from jpeglm_jax.training import checkpoint, messages, optimizer
from jpeglm_jax.training.checkpoint import Checkpoints
from jpeglm_jax.training.data import RunData
from jpeglm_jax.training.log import RunLog
from jpeglm_jax.training.metrics import PendingMetrics
from jpeglm_jax.training.nonfinite import Differentiable, not_finite
from jpeglm_jax.training.profiler import Profiler
from jpeglm_jax.training.step import TrainState


class Duty(NamedTuple):
    """One kind of work.

    Attributes:
      name: in checkpoints, and for the watchdog.
      every: steps between two times; 0: never. It is also due after the last step.
      work: called with the step and the state.
    """

    name: str
    every: int
    work: Callable[[int, Any], None]


class Duties:
    """Work that is due every so many steps, in a fixed order.

    A process that is killed between two duties of a step must not lose the second one. So a
    checkpoint stores `unfinished`, and the process that resumes performs those first.

    Args:
      duties: in the order in which they are performed.
      steps: length of the run.
      check: called with the name of a duty before it is performed; may raise.
    """

    def __init__(self, duties: Sequence[Duty], steps: int, check: Callable[[str], None]):
        self._work = {duty.name: duty.work for duty in duties}
        self._every = {duty.name: duty.every for duty in duties if duty.every}
        self._steps, self._check = steps, check
        self._queue: list[str] = []

    @property
    def unfinished(self) -> list[str]:
        """Names of the duties of this step that have not been performed, in order."""
        return list(self._queue)

    def due(self, step: int) -> list[str]:
        """Names of the duties that are due after a step, in order."""
        last = step == self._steps
        return [name for name, every in self._every.items() if last or step % every == 0]

    def perform(self, names: Sequence[str], step: int, state: Any) -> None:
        """Performs duties one after the other. One that raises stays unfinished, as do the rest."""
        self._queue = list(names)
        while self._queue:
            self._check(self._queue[0])
            self._work[self._queue[0]](step, state)
            self._queue.pop(0)


class Phase(NamedTuple):
    """The program of the steps from one on, up to the next phase.

    Attributes:
      name: for the watchdog, which gives the first step of a phase time to compile.
      start: steps taken before it.
      update: (state, batch) -> (state, metrics).
    """

    name: str
    start: int
    update: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]


class Meter(Protocol):
    """Gathers the metrics of steps between two reports, and the time they took."""

    @property
    def state(self) -> Mapping[str, Any]: ...
    def add(self, values: Mapping[str, Any], places: int, /) -> None: ...
    def paused(self) -> contextlib.AbstractContextManager[None]: ...
    def read(self) -> dict[str, float]: ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Loop:
    """Steps, and what is done between them.

    Attributes:
      config: of the run: `batch_size`, `steps`, `optimizer`, `log`, `checkpoint`.
      identity: what a run that resumes must have in common; a part of each checkpoint.
      workdir: the run's folder.
      mesh: the devices.
      data: of the run.
      step: of what is trained.
      phases: the first one starts at 0.
      guards, checkpoints, log, meter: of the run.
      places: of a step: what the meter counts, tokens or images.
      rehearse: called with the state before the first step, so that what is broken shows early.
      duties: what is due between steps, before the checkpoint.
    """

    config: ConfigDict
    identity: Mapping[str, Any]
    workdir: epath.Path
    mesh: Mesh
    data: RunData
    step: Differentiable
    phases: Sequence[Phase]
    guards: Guards
    checkpoints: Checkpoints
    log: RunLog
    meter: Meter
    places: int
    rehearse: Callable[[TrainState], None]
    duties: Sequence[Duty]

    @functools.cached_property
    def _duties(self) -> Duties:
        save = Duty("checkpoint", self.config.checkpoint.every, self._save)
        return Duties([*self.duties, save], self.config.steps, check=self.guards.check)

    @functools.cached_property
    def _learning_rate(self) -> optax.Schedule:
        return optimizer.schedule(self.config.optimizer, self.config.steps)

    def run(
        self, start: int, state: TrainState, unfinished: Sequence[str], profiler: Profiler
    ) -> None:
        """Takes the steps from `start` to the end.

        Args:
          start: steps taken before.
          state: after them; its memory is given up.
          unfinished: duties of step `start` that the process before did not come to.
          profiler: traces some of the steps.
        """
        fresh = {max(start, phase.start) for phase in self.phases}  # steps that compile
        rows = sharding.named(self.mesh, *BATCH_AXES)
        pending = PendingMetrics(lambda step, metrics: self._read(step, metrics, state))
        step = start
        with self.data.train_loader.batches(start, sharding=rows) as batches:
            try:
                with self.meter.paused():
                    self.rehearse(state)
                self._perform(unfinished, start, state)
                while step < self.config.steps:
                    phase = self._phase(step)
                    self.guards.check(phase.name)
                    self.checkpoints.check()
                    batch = next(batches)
                    with self._untimed(step in fresh), profiler.step(step + 1):
                        state, metrics = phase.update(state, batch)
                    step += 1
                    pending.push(step, metrics)
                    profiler.dispatched(step, metrics)
                    if step == start + 1:
                        gc.freeze()  # what lives as long as the run is not scanned again
                    if due := self._duties.due(step):
                        pending.flush()
                        self._perform(due, step, state)
                pending.flush()
            except Interrupted:
                pending.flush()
                if step > start:
                    self._save(step, state)
                    self.checkpoints.wait()
                self.log.say(messages.interrupted(step, self.workdir))
                raise
            finally:
                gc.unfreeze()

    def _phase(self, step: int) -> Phase:
        """Of the step that comes after so many."""
        return next(phase for phase in reversed(self.phases) if phase.start <= step)

    def _untimed(self, compiles: bool) -> contextlib.AbstractContextManager[None]:
        """Around a step: one that compiles is not training."""
        return self.meter.paused() if compiles else contextlib.nullcontext()

    def _perform(self, duties: Sequence[str], step: int, state: TrainState) -> None:
        with self.meter.paused():
            self._duties.perform(duties, step, state)

    def _save(self, step: int, state: TrainState) -> None:
        self.guards.confirm()
        left = [name for name in self._duties.unfinished if name != "checkpoint"]
        position = {
            "step": step,
            "meter": self.meter.state,
            "lines": self.log.lines,
            "duties": left,
            "config": self.config.to_dict(),
            "versions": checkpoint.versions(),
        }
        self.checkpoints.save(step, state, {**self.identity, **position})

    def _read(self, step: int, metrics: Mapping[str, Any], state: TrainState) -> None:
        """Takes in the metrics of a step; `state` is as the newest step has left it."""
        config, data = self.config, self.data
        if not metrics["finite"]:
            raise not_finite(self.workdir, self.step, self.mesh, state, data, step)
        self.meter.add(metrics, self.places)
        self.log.step(step)
        if step % config.log.every == 0 or step == config.steps:
            epochs = data.train_loader.plan.epochs(step * config.batch_size)
            values = self.meter.read() | {
                "train/learning_rate": float(self._learning_rate(step - 1)),
                "train/epoch": max(epochs),
            }
            if damaged := data.num_damaged:
                values["train/damaged_documents"] = damaged
            self.log.report(step, values)
