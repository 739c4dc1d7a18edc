"""Example: python -m jpeglm_jax.train_tokenizer --config=configs/vq.py:tokenizer_digits

Trains the tokenizer of the vq representation: a convolutional encoder and decoder around a
quantiser. Any value can be changed (--config.quantizer.codes=1024), and the run's folder chosen
(--workdir=DIR). The same command again resumes from the newest checkpoint. The result is
WORKDIR/tokenizer.safetensors, for --config.representation.weights=WORKDIR of a model on its codes.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from data_pipelines import representations
from data_pipelines.representations.vq import network
from data_pipelines.representations.vq.weights import TOKENIZER_FILE, pack
from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command, files
from jpeglm_jax.hardware.compilation_cache import keep_compiled
from jpeglm_jax.hardware.large_pages import restart_with_large_pages
from jpeglm_jax.model.flops import peak_flops
from jpeglm_jax.parallel import distributed, sharding
from jpeglm_jax.parallel.distributed import MainProcessError
from jpeglm_jax.parallel.sharding import BATCH_AXES
from jpeglm_jax.supervision.guards import Guards, guarded
from jpeglm_jax.supervision.preemption import Interrupted
from jpeglm_jax.tokenizer import flops, images, messages
from jpeglm_jax.tokenizer.evaluation import Evaluator, collapse
from jpeglm_jax.tokenizer.metrics import Meter
from jpeglm_jax.tokenizer.settings import check_numbers, identity_of, settings_of
from jpeglm_jax.tokenizer.step import (
    TokenizerStep,
    compile_init,
    compile_update,
    make_step,
    tokenizer_config,
)
from jpeglm_jax.training import checkpoint, optimizer
from jpeglm_jax.training import messages as run_messages
from jpeglm_jax.training.checkpoint import Checkpoints, SaveError, refuse_difference
from jpeglm_jax.training.data import RunData, open_data
from jpeglm_jax.training.duties import Duties, Duty
from jpeglm_jax.training.log import RunLog
from jpeglm_jax.training.metrics import PendingMetrics
from jpeglm_jax.training.nonfinite import NotFinite, not_finite
from jpeglm_jax.training.profiler import Profiler
from jpeglm_jax.training.resume import newest
from jpeglm_jax.training.samples import save_grid
from jpeglm_jax.training.step import TrainState

_ADVICE = "Lower optimizer.learning_rate, or the weights of the losses."


def train_tokenizer(
    config: ConfigDict, workdir: epath.PathLike, profile: str = ""
) -> dict[str, float]:
    """Runs, or resumes, the training of a tokenizer that `config` describes.

    Everything is written to `workdir`: config.json, metrics.jsonl, tensorboard/, checkpoints/,
    samples/ (images above their reconstructions), data/ if the pixels were prepared here, and at
    the end tokenizer.safetensors. No other run writes there meanwhile.

    Args:
      config: see the presets tokenizer_* in configs/vq.py.
      workdir: local or `gs://`, the same for all processes.
      profile: steps to trace, "START:STOP"; see `Profiler`.

    Returns:
      The last metrics of the eval split, `eval/*`.

    Raises: as `train.train`.
    """
    workdir = epath.Path(workdir)
    with guarded(workdir, config.watchdog) as guards:
        return run(config, workdir, profile, guards)


def trained_tokenizer(config: ConfigDict, workdir: epath.PathLike) -> epath.Path:
    """The folder of a trained tokenizer; trains it, or resumes its training, unless it is there.

    Args:
      config, workdir: see `train_tokenizer`.

    Raises:
      CheckpointError: the folder has a tokenizer of other settings; names them.
      Others: as `train_tokenizer`.
    """
    workdir = epath.Path(workdir)
    if (workdir / TOKENIZER_FILE).is_file():
        stored = ConfigDict(json.loads((workdir / "config.json").read_text()))
        refuse_difference(settings_of(config), settings_of(stored), "tokenizer", str(workdir))
    else:
        train_tokenizer(config, workdir)
    return workdir


def with_tokenizer(config: ConfigDict, workdir: epath.PathLike) -> ConfigDict:
    """The configuration of a model with the tokenizer whose codes it trains on.

    Nothing is trained if `representation.weights` names one, or `data.shards` shards of codes, or
    if the configuration has no `tokenizer` to train.

    Args:
      config: of a model. Its `tokenizer` is that of a tokenizer, whose source is by default the
        model's own.
      workdir: of the model; the tokenizer is trained into WORKDIR/tokenizer.
    """
    if not config.get("tokenizer") or config.representation.weights or config.data.shards:
        return config
    config = config.copy_and_resolve_references()
    tokenizer = config.tokenizer
    if not (tokenizer.data.source or tokenizer.data.shards):
        tokenizer.data.source = config.data.source
    folder = trained_tokenizer(tokenizer, epath.Path(workdir) / "tokenizer")
    config.representation.weights = str(folder)
    return config


def run(config: ConfigDict, workdir: epath.Path, profile: str, guards: Guards) -> dict[str, float]:
    """Devices, data, tokenizer, state; then one step after the other. See `train_tokenizer`."""
    check_numbers(config)
    keep_compiled(config.compilation_cache, workdir)
    mesh = sharding.make_mesh(
        {axis: config.mesh[axis] for axis in sharding.AXES}, slices=config.mesh.slices
    )
    pixels = representations.make(**config.representation)
    shape = tokenizer_config(config, pixels)
    step = make_step(config, shape, jax.default_backend())
    sharding.check_divides(mesh, {"batch_size": ("batch", config.batch_size)})
    with guards.watchdog.paused():  # reading a source may take any time
        data = open_data(_with_rows_of_one_image(config, images.seq_len(pixels)), workdir)
    identity = identity_of(config, data, shape)
    # From here on a signal waits for the next `guards.check`.
    with (
        guards.interruption.deferred(),
        Checkpoints(workdir, config.checkpoint) as checkpoints,
        checkpoints.naming_a_full_disk(),
    ):
        start, meta, state = _begin(config, identity, step, mesh, checkpoints)
        with (
            RunLog(workdir, config, start, meta.get("lines", 0)) as log,
            Profiler(profile, workdir) as profiler,
        ):
            log.say(messages.opening(config, step, mesh, data, start))
            trainer = Trainer(
                config, identity, workdir, mesh, data, step, guards, checkpoints, log, meta
            )
            trainer.train(start, state, meta.get("duties", []), profiler)
            log.say(messages.closing(workdir, shape, config.steps, trainer.evaluated))
    return trainer.evaluated


def _with_rows_of_one_image(config: ConfigDict, seq_len: int) -> ConfigDict:
    """The configuration with what the loader needs for documents of one length, without labels."""
    config = config.copy_and_resolve_references().unlock()
    config.seq_len = seq_len
    config.data.update(conditional=False, label_dropout=0.0, packing="pack", too_long="drop")
    config.data.train_tokenizer = ConfigDict()
    return config


def _begin(
    config: ConfigDict,
    identity: Mapping[str, Any],
    step: TokenizerStep,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> tuple[int, dict[str, Any], TrainState]:
    """The step to resume from, the meta of its checkpoint, and the state; see `resume.newest`."""
    latest, meta = newest(checkpoints, identity, config.steps)
    if latest is None:
        return 0, {}, compile_init(step, mesh)(np.uint32(config.seed))
    where = step.state_shardings(mesh)
    return latest, meta, checkpoints.restore(latest, step.abstract_state(), where)


class Trainer:
    """Steps, and what is done between them; as `train.Trainer`.

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
        step: TokenizerStep,
        guards: Guards,
        checkpoints: Checkpoints,
        log: RunLog,
        meta: Mapping[str, Any],
    ):
        self.evaluated: dict[str, float] = {}
        self._config, self._workdir, self._mesh = config, workdir, mesh
        self._data, self._step, self._identity = data, step, identity
        self._guards, self._checkpoints, self._log = guards, checkpoints, log
        peak = peak_flops(mesh.devices.flat[0])
        self._meter = Meter(
            flops.train_flops_per_image(step), peak * mesh.size if peak else None, meta.get("meter")
        )
        self._learning_rate = optimizer.schedule(config.optimizer, config.steps)
        self._evaluator = Evaluator(
            step,
            data.eval_loader,
            mesh,
            max_batches=config.evaluate.batches,
            num_shown=config.sample.num,
            check=lambda: guards.check("evaluate"),
        )
        shows = config.sample.every if config.sample.num else 0
        self._duties = Duties(
            [
                Duty("evaluate", config.evaluate.every, self._evaluate),
                Duty("sample", shows, self._sample),
                Duty("export", config.steps, self._export),
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
        updates = {
            adversarial: compile_update(self._step, self._mesh, adversarial=adversarial)
            for adversarial in (False, True)
        }
        fresh = {start, max(start, self._step.adversarial_start)}  # steps that compile
        rows = sharding.named(self._mesh, *BATCH_AXES)
        pending = PendingMetrics(lambda step, metrics: self._read(step, metrics, state))
        step = start
        with self._data.train_loader.batches(start, sharding=rows) as batches:
            try:
                with self._meter.paused():  # if evaluation is broken, it shows now
                    self._evaluator(state.averaged, max_batches=1)
                self._perform(unfinished, start, state)
                while step < config.steps:
                    guards.check("train" if step < self._step.adversarial_start else "train both")
                    self._checkpoints.check()
                    batch = next(batches)
                    with self._untimed(step in fresh), profiler.step(step + 1):
                        update = updates[step >= self._step.adversarial_start]
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
                self._log.say(run_messages.interrupted(step, self._workdir))
                raise
            finally:
                gc.unfreeze()

    def _untimed(self, compiles: bool) -> contextlib.AbstractContextManager[None]:
        """Around a step: one that compiles is not training."""
        return self._meter.paused() if compiles else contextlib.nullcontext()

    def _perform(self, duties: Sequence[str], step: int, state: TrainState) -> None:
        with self._meter.paused():
            self._duties.perform(duties, step, state)

    def _evaluate(self, step: int, state: TrainState) -> None:
        self.evaluated = self._evaluator(state.averaged)
        self._log.report(step, self.evaluated)
        shape = self._step.tokenizer.config
        if text := collapse(self.evaluated, shape, self._config.quantizer):
            self._log.say(text)

    def _sample(self, step: int, state: TrainState) -> None:
        picture = self._evaluator.picture(state.averaged)
        if distributed.is_main():
            save_grid(picture, self._workdir, step)
            self._log.image(step, "samples/reconstructions", np.asarray(picture))

    def _export(self, step: int, state: TrainState) -> None:
        """Writes the tokenizer, once it is trained."""
        if distributed.is_main():
            params = self._step.exported(state.averaged)
            run = {"steps": step, "seed": self._config.seed}
            file = pack(self._step.tokenizer.config, network.flatten(params), run)
            files.write_atomically(self._workdir / TOKENIZER_FILE, file)

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
            raise not_finite(self._workdir, self._step, self._mesh, state, data, step, _ADVICE)
        self._meter.add(metrics, config.batch_size)
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
    train_tokenizer(config, values.workdir or f"runs/vq-{config.preset}", profile=values.profile)


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to train: FILE[:PRESET].")
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "The run's folder; default runs/vq-PRESET.")
    flags.DEFINE_string("profile", "", "Steps to trace, such as 100:105 (105 not included).")
    distributed.define_flags()


if __name__ == "__main__":
    _define_flags()
    command.run(main, NotFinite, ShardError, SaveError, MainProcessError)
