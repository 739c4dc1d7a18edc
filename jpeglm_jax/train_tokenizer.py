"""Example: python -m jpeglm_jax.train_tokenizer --config=configs/vq.py:tokenizer_digits

Trains the tokenizer of the vq representation: a convolutional encoder and decoder around a
quantiser. Any value can be changed (--config.quantizer.codes=1024), and the run's folder chosen
(--workdir=DIR). The same command again resumes from the newest checkpoint. The result is
WORKDIR/tokenizer.safetensors, for --config.representation.weights=WORKDIR of a model on its codes.
"""

from __future__ import annotations

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
from jpeglm_jax.supervision.guards import Guards, guarded
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
from jpeglm_jax.training import checkpoint
from jpeglm_jax.training.checkpoint import Checkpoints, SaveError, refuse_difference
from jpeglm_jax.training.data import RunData, open_data
from jpeglm_jax.training.log import RunLog
from jpeglm_jax.training.loop import Duty, Loop, Phase
from jpeglm_jax.training.nonfinite import NotFinite
from jpeglm_jax.training.profiler import Profiler
from jpeglm_jax.training.resume import newest
from jpeglm_jax.training.samples import save_grid
from jpeglm_jax.training.step import TrainState


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
            peak = peak_flops(mesh.devices.flat[0])
            meter = Meter(
                flops.train_flops_per_image(step),
                peak * mesh.size if peak else None,
                meta.get("meter"),
            )
            reports = Reports(config, workdir, mesh, data, step, guards, log)
            loop = Loop(
                config=config,
                identity=identity,
                workdir=workdir,
                mesh=mesh,
                data=data,
                step=step,
                phases=[
                    Phase("train", 0, compile_update(step, mesh, adversarial=False)),
                    Phase(
                        "train both",
                        step.adversarial_start,
                        compile_update(step, mesh, adversarial=True),
                    ),
                ],
                guards=guards,
                checkpoints=checkpoints,
                log=log,
                meter=meter,
                places=config.batch_size,
                rehearse=reports.rehearse,
                duties=reports.duties,
            )
            loop.run(start, state, meta.get("duties", []), profiler)
            log.say(messages.closing(workdir, shape, config.steps, reports.evaluated))
    return reports.evaluated


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


class Reports:
    """What a run reports of its tokenizer between steps, and the tokenizer at the end.

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
        step: TokenizerStep,
        guards: Guards,
        log: RunLog,
    ):
        self.evaluated: dict[str, float] = {}
        self._config, self._workdir, self._step, self._log = config, workdir, step, log
        self._evaluator = Evaluator(
            step,
            data.eval_loader,
            mesh,
            max_batches=config.evaluate.batches,
            num_shown=config.sample.num,
            check=lambda: guards.check("evaluate"),
        )
        shows = config.sample.every if config.sample.num else 0
        self.duties = [
            Duty("evaluate", config.evaluate.every, self._evaluate),
            Duty("sample", shows, self._sample),
            Duty("export", config.steps, self._export),
        ]

    def rehearse(self, state: TrainState) -> None:
        """Evaluates a little: if evaluation is broken, it shows now."""
        self._evaluator(state.averaged, max_batches=1)

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
