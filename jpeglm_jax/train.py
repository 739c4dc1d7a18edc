"""Example: python -m jpeglm_jax.train --config=configs/jpeg.py

Trains a Llama on the tokens of a representation. Give a preset after a colon
(configs/jpeg.py:cifar10), change any value (--config.optimizer.learning_rate=1e-3), choose the
run's folder (--workdir=DIR). The same command again resumes from the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from jpeglm_jax.supervision.guards import Guards, guarded
from jpeglm_jax.train_tokenizer import with_tokenizer
from jpeglm_jax.training import checkpoint, messages
from jpeglm_jax.training.checkpoint import Checkpoints, SaveError
from jpeglm_jax.training.data import RunData, open_data
from jpeglm_jax.training.evaluation import Evaluator
from jpeglm_jax.training.log import RunLog
from jpeglm_jax.training.loop import Duty, Loop, Phase
from jpeglm_jax.training.metrics import Meter
from jpeglm_jax.training.nonfinite import NotFinite
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
            reports = Reports(config, workdir, mesh, data, train_step, guards, log)
            loop = Loop(
                config=config,
                identity=identity,
                workdir=workdir,
                mesh=mesh,
                data=data,
                step=train_step,
                phases=[Phase("train", 0, compile_train_step(train_step, mesh))],
                guards=guards,
                checkpoints=checkpoints,
                log=log,
                meter=Meter.of_run(config, train_step.model.config, mesh, data, meta.get("meter")),
                places=config.batch_size * config.seq_len,
                rehearse=reports.rehearse,
                duties=reports.duties,
            )
            loop.run(start, state, meta.get("duties", []), profiler)
            log.say(messages.closing(workdir, config.steps, reports.evaluated))
    return reports.evaluated


class Reports:
    """What a run reports of its model between steps: its evaluation and its samples.

    Attributes:
      evaluated: the newest metrics `eval/*`.
      duties: when each is due.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        mesh: Mesh,
        data: RunData,
        train_step: TrainStep,
        guards: Guards,
        log: RunLog,
    ):
        self.evaluated: dict[str, float] = {}
        self._workdir, self._log = workdir, log
        self._evaluator = Evaluator(
            compile_eval_step(train_step, mesh),
            data.eval_loader,
            mesh,
            max_batches=config.evaluate.batches,
            check=lambda: guards.check("evaluate"),
        )
        self._sampler = Sampler.of_run(config, train_step.model, mesh, data, guards.check)
        self.duties = [
            Duty("evaluate", config.evaluate.every, self._evaluate),
            Duty("sample", config.sample.every if self._sampler else 0, self._sample),
        ]

    def rehearse(self, state: TrainState) -> None:
        """Evaluates a little: if evaluation is broken, it shows now."""
        self._evaluator(state.averaged, max_batches=2)

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
