"""Example: python -m jpeglm_jax.train --config=configs/jpeg.py

Trains a Llama on the tokens of a representation. Give a preset after a colon
(configs/jpeg.py:cifar10), change any value (--config.optimizer.learning_rate=1e-3), choose the
run's folder (--workdir=DIR). The same command again resumes from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from jpeglm_jax.hardware.compilation_cache import keep_compiled
from jpeglm_jax.hardware.large_pages import restart_with_large_pages
from jpeglm_jax.parallel import distributed, sharding
from jpeglm_jax.parallel.distributed import MainProcessError
from jpeglm_jax.parallel.sharding import BATCH_AXES
from jpeglm_jax.supervision.guards import Guards, guarded
from jpeglm_jax.supervision.preemption import Interrupted
from jpeglm_jax.train_tokenizer import with_tokenizer
from jpeglm_jax.training import checkpoint, messages, optimizer
from jpeglm_jax.training.checkpoint import Checkpoints, SaveError
from jpeglm_jax.training.data import RunData, open_data
from jpeglm_jax.training.duties import Duties, Duty
from jpeglm_jax.training.evaluation import Evaluator
from jpeglm_jax.training.log import RunLog
from jpeglm_jax.training.metrics import Meter, PendingMetrics
from jpeglm_jax.training.nonfinite import NotFinite, not_finite
from jpeglm_jax.training.profiler import Profiler
from jpeglm_jax.training.resume import begin, check_numbers, identity_of
from jpeglm_jax.training.samples import Sampler, save_grid
from jpeglm_jax.training.step import (
    TrainState,
    TrainStep,
    check_mesh,
    compile_eval_step,
    compile_train_step,
    make_train_step,
)


def train(config: ConfigDict, workdir: epath.PathLike, profile: str = "") -> dict[str, float]:
    """Runs, or resumes, the training that `config` describes.

    Everything is written to `workdir`: config.json, metrics.jsonl, tensorboard/, checkpoints/,
    samples/, data/ if the documents were prepared here, and tokenizer/ if a learned tokenizer was
    trained here. No other run writes there meanwhile.

    Args:
      config: see configs/.
      workdir: local or `gs://`, the same for all processes.
      profile: steps to trace, "START:STOP"; see `Profiler`.

    Returns:
      The last metrics of the eval split, `eval/*`.

    Raises:
      MeshError, CheckpointError, SettingsError, SourceError, ShardError, FolderInUse, ValueError:
        the configuration cannot be run; raised before the first step.
      Interrupted: by SIGTERM or Ctrl-C; the last finished step is in a checkpoint.
      NotFinite: training diverged; the checkpoints are from before that.
      SaveError: something could not be written; the checkpoints from before that are whole.
    """
    workdir = epath.Path(workdir)
    config = with_tokenizer(config, workdir)
    with guarded(workdir, config.watchdog) as guards:
        return run(config, workdir, profile, guards)


def run(config: ConfigDict, workdir: epath.Path, profile: str, guards: Guards) -> dict[str, float]:
    """Devices, data, model, state; then one step after the other. See `train`."""
    check_numbers(config)
    keep_compiled(config.compilation_cache, workdir)
    mesh = sharding.make_mesh(
        {axis: config.mesh[axis] for axis in sharding.AXES}, slices=config.mesh.slices
    )
    with guards.watchdog.paused():  # encoding a source may take any time
        data = open_data(config, workdir)
    train_step = make_train_step(
        config, data.representation, jax.default_backend(), data.max_documents
    )
    check_mesh(config, train_step.model.config, mesh)
    identity = identity_of(config, data)
    # From here on a signal waits for the next `guards.check`.
    with (
        guards.interruption.deferred(),
        Checkpoints(workdir, config.checkpoint) as checkpoints,
        checkpoints.naming_a_full_disk(),
    ):
        start, meta, state = begin(config, identity, train_step, mesh, checkpoints)
        with (
            RunLog(workdir, config, start, meta.get("lines", 0)) as log,
            Profiler(profile, workdir) as profiler,
        ):
            if distributed.is_main():
                data.representation.save(workdir)
            log.say(messages.opening(config, train_step, mesh, data, start))
            trainer = Trainer(
                config,
                identity,
                workdir,
                mesh,
                data,
                train_step,
                guards,
                checkpoints,
                log,
                Meter.of_run(config, train_step.model.config, mesh, data, meta.get("meter")),
            )
            trainer.train(start, state, meta.get("duties", []), profiler)
            log.say(messages.closing(workdir, config.steps, trainer.evaluated))
    return trainer.evaluated


class Trainer:
    """Steps, and what is done between them.

    Attributes:
      evaluated: the newest metrics `eval/*`.
    """

    def __init__(
        self,
        config: ConfigDict,
        identity: Mapping[str, Any],
        workdir: epath.Path,
        mesh: Mesh,
        data: RunData,
        train_step: TrainStep,
        guards: Guards,
        checkpoints: Checkpoints,
        log: RunLog,
        meter: Meter,
    ):
        self.evaluated: dict[str, float] = {}
        self._config, self._workdir, self._mesh = config, workdir, mesh
        self._data, self._train_step = data, train_step
        self._guards, self._checkpoints, self._log = guards, checkpoints, log
        self._identity, self._meter = identity, meter
        self._learning_rate = optimizer.schedule(config.optimizer, config.steps)
        self._evaluator = Evaluator(
            compile_eval_step(train_step, mesh),
            data.eval_loader,
            mesh,
            max_batches=config.evaluate.batches,
            check=lambda: guards.check("evaluate"),
        )
        self._sampler = Sampler.of_run(config, train_step.model, mesh, data.eval, guards.check)
        self._duties = Duties(
            [
                Duty("evaluate", config.evaluate.every, self._evaluate),
                Duty("sample", config.sample.every if self._sampler else 0, self._sample),
                Duty("checkpoint", config.checkpoint.every, self._save),
            ],
            config.steps,
            check=guards.check,
        )

    def train(
        self, start: int, state: TrainState, unfinished: Sequence[str], profiler: Profiler
    ) -> None:
        """Takes the steps from `start` to the end.

        Args:
          start: steps taken before.
          state: after them; its memory is given up.
          unfinished: duties of step `start` that the process before did not come to.
          profiler: traces some of the steps.
        """
        config, guards = self._config, self._guards
        update = compile_train_step(self._train_step, self._mesh)
        rows = sharding.named(self._mesh, *BATCH_AXES)
        pending = PendingMetrics(lambda step, metrics: self._read(step, metrics, state))
        step = start
        with self._data.train_loader.batches(start, sharding=rows) as batches:
            try:
                with self._meter.paused():  # if evaluation is broken, it shows now
                    self._evaluator(state.averaged, max_batches=2)
                self._perform(unfinished, start, state)
                while step < config.steps:
                    guards.check("train")
                    self._checkpoints.check()
                    batch = next(batches)
                    with self._untimed(step == start), profiler.step(step + 1):
                        state, metrics = update(state, batch)
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
                    self._checkpoints.wait()
                self._log.say(messages.interrupted(step, self._workdir))
                raise
            finally:
                gc.unfreeze()

    def _untimed(self, first: bool) -> contextlib.AbstractContextManager[None]:
        """Around a step: the first one compiles, which is not training."""
        return self._meter.paused() if first else contextlib.nullcontext()

    def _perform(self, duties: Sequence[str], step: int, state: TrainState) -> None:
        with self._meter.paused():
            self._duties.perform(duties, step, state)

    def _evaluate(self, step: int, state: TrainState) -> None:
        self.evaluated = self._evaluator(state.averaged)
        self._log.report(step, self.evaluated)

    def _sample(self, step: int, state: TrainState) -> None:
        assert self._sampler is not None
        documents = self._sampler(state.averaged)
        if distributed.is_main():
            picture = self._sampler.grid(documents)
            save_grid(picture, self._workdir, step)
            self._log.image(step, "samples/grid", np.asarray(picture))
        self._log.report(step, self._sampler.metrics(documents))

    def _save(self, step: int, state: TrainState) -> None:
        self._guards.confirm()
        left = [name for name in self._duties.unfinished if name != "checkpoint"]
        position = {
            "step": step,
            "meter": self._meter.state,
            "lines": self._log.lines,
            "duties": left,
            "config": self._config.to_dict(),
            "versions": checkpoint.versions(),
        }
        self._checkpoints.save(step, state, {**self._identity, **position})

    def _read(self, step: int, metrics: Mapping[str, Any], state: TrainState) -> None:
        """Takes in the metrics of a step; `state` is as the newest step has left it."""
        config, data = self._config, self._data
        if not metrics["finite"]:
            raise not_finite(self._workdir, self._train_step, self._mesh, state, data, step)
        self._meter.add(metrics, config.batch_size * config.seq_len)
        self._log.step(step)
        if step % config.log.every == 0 or step == config.steps:
            epochs = data.train_loader.plan.epochs(step * config.batch_size)
            values = self._meter.read() | {
                "train/learning_rate": float(self._learning_rate(step - 1)),
                "train/epoch": max(epochs),
            }
            if damaged := data.num_damaged:
                values["train/damaged_documents"] = damaged
            self._log.report(step, values)


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    restart_with_large_pages()
    config, values = flags.FLAGS.config, flags.FLAGS
    checkpoint.quiet_libraries()
    sharding.split_cpu(sharding.cpu_devices(config))
    distributed.start_from_flags()
    train(
        config,
        values.workdir or f"runs/{config.representation.name}-{config.preset}",
        profile=values.profile,
    )


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to run: FILE[:PRESET].")
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "The run's folder; default runs/NAME-PRESET.")
    flags.DEFINE_string("profile", "", "Steps to trace, such as 100:105 (105 not included).")
    distributed.define_flags()


if __name__ == "__main__":
    _define_flags()
    command.run(main, NotFinite, ShardError, SaveError, MainProcessError)
