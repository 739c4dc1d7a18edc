"""Example: python -m jpeglm_jax.train --config=configs/jpeg.py

Trains a Llama on the tokens of a representation. Give a preset after a colon
(configs/jpeg.py:cifar10), change any value (--config.optimizer.learning_rate=1e-3), choose where
everything goes (--workdir=DIR). The same command again goes on from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict, config_flags

from data_pipelines.loading.joined_shards import JoinedShards, stages
from data_pipelines.loading.loader import Loader
from data_pipelines.preparation.launchers import num_cpus
from data_pipelines.representations import contact_sheet
from data_pipelines.shards import files
from data_pipelines.shards.files import ShardError
from data_pipelines.utils import command
from jpeglm_jax.generation import prompts
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.sampling import Filter
from jpeglm_jax.hardware.large_pages import restart_with_large_pages
from jpeglm_jax.model import flops
from jpeglm_jax.parallel import distributed, sharding
from jpeglm_jax.parallel.distributed import MainProcessError
from jpeglm_jax.supervision.guards import Guards, guarded
from jpeglm_jax.supervision.preemption import Interrupted
from jpeglm_jax.training import checkpoint, messages, optimizer
from jpeglm_jax.training.checkpoint import Checkpoints, SaveError
from jpeglm_jax.training.data import (
    check_representation,
    held_out_documents,
    make_loader,
    prepare_here,
    shard_folders,
)
from jpeglm_jax.training.metrics import Console, Meter, MetricsLog, likelihood
from jpeglm_jax.training.nonfinite import NotFinite, not_finite
from jpeglm_jax.training.profiler import Profiler
from jpeglm_jax.training.step import (
    BATCH_AXES,
    Recipe,
    TrainState,
    check_mesh,
    compile_eval_step,
    compile_init,
    compile_train_step,
    model_config,
)


def train(config: ConfigDict, workdir: epath.PathLike, profile: str = "") -> dict[str, float]:
    """Runs, or goes on with, the training that `config` describes.

    Everything is written to `workdir`: config.json, metrics.jsonl, tensorboard/, checkpoints/,
    samples/, and data/ if the documents were prepared here. While it runs, no other run writes
    there.

    Args:
      config: see configs/.
      workdir: local or `gs://`, the same for all processes.
      profile: steps to trace, "START:STOP"; see `Profiler`.

    Returns:
      The last held-out metrics.

    Raises:
      MeshError, CheckpointError, SettingsError, SourceError, ShardError, FolderInUse, ValueError:
        what was asked for cannot be done; said before any step.
      Interrupted: by SIGTERM or Ctrl-C; the last finished step is in a checkpoint.
      NotFinite: training diverged; the checkpoints are from before that.
      SaveError: something could not be written; the checkpoints from before that are whole.
    """
    workdir = epath.Path(workdir)
    with guarded(workdir, config.watchdog) as guards:
        return run(config, workdir, profile, guards)


def run(config: ConfigDict, workdir: epath.Path, profile: str, guards: Guards) -> dict[str, float]:
    """The story of a run, once nothing can disturb it; see `train`."""
    main = distributed.is_main()
    keep_compiled(config.compilation_cache, workdir)

    # --- Devices ----------------------------------------------------------------------------------
    mesh = sharding.make_mesh(
        {axis: config.mesh[axis] for axis in sharding.AXES}, slices=config.mesh.slices
    )
    rows = sharding.named(mesh, *BATCH_AXES)

    # --- Data -------------------------------------------------------------------------------------
    with guards.watchdog.asleep():
        folders = shard_folders(config) or [prepare_here(config, workdir)]
    documents = JoinedShards(folders, "train", config.data.on_damage)
    heldout = held_out_documents(config, folders)
    representation = documents.representation
    check_representation(config, representation)
    mixture = stages(config.data.weights, config.batch_size)
    loader = make_loader(config, documents, config.data.label_dropout, mixture)
    eval_loader = make_loader(config, heldout, label_dropout=0.0)

    # --- Model and steps --------------------------------------------------------------------------
    model = model_config(config, representation.vocab_size, jax.default_backend())
    check_mesh(config, model, mesh)
    recipe = Recipe(
        model, config.optimizer, config.steps, representation.eos, representation.byte_lengths
    )
    train_step = compile_train_step(recipe, mesh)
    eval_step = compile_eval_step(recipe, mesh)
    learning_rate = optimizer.schedule(config.optimizer, config.steps)

    # --- Where to begin: a checkpoint of this run, the weights of another, or the seed ------------
    identity = {
        "representation": representation.to_config(),
        "model": checkpoint.shape_of(config),
        "data": {"batches": loader.fingerprint},
    }
    checkpoints = Checkpoints(workdir, config.checkpoint)
    start, meta, state = begin(config, recipe, mesh, checkpoints, identity)

    # --- Where the numbers go ---------------------------------------------------------------------
    peak = flops.peak_flops(mesh.devices.flat[0])
    meter = Meter(
        flops.train_flops_per_token(model, config.row_length),
        peak * mesh.size if peak else None,
        meta.get("meter"),
        representation.medium,
    )
    console = Console(config.steps, start, quiet=not main)
    kept = meta.get("lines", 0)
    log = MetricsLog(workdir, start, kept, tensorboard=config.log.tensorboard) if main else None
    if main:
        representation.save(workdir)
        text = config.to_json_best_effort(indent=2) + "\n"
        files.write_atomically(workdir / "config.json", text.encode())
    for line in messages.set_aside(documents):
        console.say(line)
    console.say(messages.opening(config, recipe, mesh, loader, eval_loader, start))
    profiler = Profiler(profile, workdir)

    def report(at: int, values: dict[str, float]) -> dict[str, float]:
        console.metrics(at, values)
        if log:
            log.write(at, values)
        return values

    # --- What is done every so many steps ---------------------------------------------------------
    at, last = start, {}

    def evaluate() -> None:
        nonlocal last
        batches = config.evaluate.batches
        last = report(at, held_out(eval_step, averaged(state), eval_loader, rows, batches, guards))

    engine = Engine(
        recipe,
        mesh,
        Filter.of(config.sample),
        batch_size=min(config.sample.num, config.sample.batch_size),
        length=config.row_length,
        seed=config.seed,
        bos=representation.bos,
    )

    requests = prompts.of_run(config.sample, heldout, config.row_length)

    def sample() -> None:
        drawn = []
        for document in engine(averaged(state), [request.prompt for request in requests]):
            guards.check("sample")
            drawn.append(document)
        drawn.sort(key=lambda document: document.number)
        samples = [document.tokens for document in drawn]
        if log:
            picture = contact_sheet.sheet_of_documents(representation, samples)
            (workdir / "samples").mkdir(exist_ok=True)
            contact_sheet.save(picture, workdir / "samples" / f"step_{at:08d}.png")
            log.image(at, "samples", np.asarray(picture))
        valid = [representation.inspect(tokens).valid for tokens in samples]
        report(at, {"samples_valid": sum(valid) / len(valid)})

    def save() -> None:
        guards.confirm()
        position = {"step": at, "meter": meter.state, "lines": log.lines if log else 0}
        position["duties"] = [name for name in duties if name != "checkpoint"]
        checkpoints.save(at, state, identity | about(config) | position)

    work = {"evaluate": evaluate, "sample": sample, "checkpoint": save}
    duties: list[str] = meta.get("duties", [])  # what an interrupted run had not come to
    with meter.paused():  # if evaluation is broken, it shows now
        held_out(eval_step, averaged(state), eval_loader, rows, 2, guards)

    # --- Loop -------------------------------------------------------------------------------------
    # Metrics of a step are read after the next one is under way, so that the device never waits.
    unread: tuple[int, Any] | None = None

    def read_metrics() -> None:
        nonlocal unread
        if unread is None:
            return
        (step, values), unread = (unread[0], jax.device_get(unread[1])), None
        if not values["finite"]:
            raise not_finite(workdir, recipe, mesh, state.params, loader, documents, step)
        meter.add(values, config.batch_size * config.row_length)
        console.step(step)
        if step % config.log.every == 0 or step == config.steps:
            now = {"learning_rate": float(learning_rate(step - 1))}
            now["epoch"] = max(loader.plan.epochs(step * config.batch_size))
            if damaged := documents.num_damaged + heldout.num_damaged:
                now["damaged_documents"] = damaged
            report(step, meter.read() | now)

    with contextlib.ExitStack() as at_the_end:
        at_the_end.enter_context(guards.interruption.deferred())
        for close in (checkpoints.close, console.close, profiler.close):
            at_the_end.callback(close)
        if log:
            at_the_end.callback(log.close)
        batches = at_the_end.enter_context(loader.batches(start, sharding=rows))
        try:
            while duties or at < config.steps:
                if duties:
                    read_metrics()
                    with meter.paused():
                        guards.check(duties[0])
                        work[duties[0]]()
                    duties.pop(0)
                    continue
                guards.check("train")
                checkpoints.check()
                batch = next(batches)
                compiling = meter.paused() if at == start else contextlib.nullcontext()
                with compiling, profiler.step(at + 1):
                    state, values = train_step(state, batch)
                at += 1
                read_metrics()
                unread = (at, values)
                profiler.dispatched(at, values)
                duties = [name for name in work if due(at, config[name].every, config.steps)]
                if at == start + 1:
                    gc.freeze()  # what lives as long as the run is not looked through again
                    at_the_end.callback(gc.unfreeze)
            read_metrics()
        except Interrupted:
            read_metrics()
            if at > start:
                save()
                checkpoints.wait()
            console.say(messages.interrupted(at, workdir))
            raise
        except (OSError, ShardError) as error:
            if checkpoint.no_room(error):
                raise checkpoints.failure(error) from error
            raise
    if main:
        print(messages.closing(workdir, config, last), flush=True)
    return last


def due(step: int, every: int, steps: int) -> bool:
    """Whether something done every so many steps (0: never), and at the end, is due."""
    return bool(every) and (step % every == 0 or step == steps)


def averaged(state: TrainState) -> Any:
    """The weights to judge and to sample from: their average if there is one."""
    return state.params if state.ema is None else state.ema


def about(config: ConfigDict) -> dict[str, Any]:
    """What a checkpoint tells of the run besides its identity."""
    return {"config": config.to_dict(), "versions": checkpoint.versions()}


def begin(
    config: ConfigDict,
    recipe: Recipe,
    mesh: Mesh,
    checkpoints: Checkpoints,
    identity: dict[str, Any],
) -> tuple[int, dict[str, Any], TrainState]:
    """The step to go on from, what its checkpoint tells, and the state.

    Raises:
      CheckpointError: the checkpoint is of another representation, model or data.
    """
    latest = checkpoints.latest()
    if latest is not None:
        meta = checkpoints.meta(latest)
        for part, ours in identity.items():
            checkpoint.refuse_difference(ours, meta[part], part)
        where = recipe.state_shardings(mesh)
        return latest, meta, checkpoints.restore(latest, recipe.abstract_state(), where)
    state = compile_init(recipe, mesh)(config.seed)
    if config.init_from:
        other = Checkpoints(config.init_from)
        meta = other.meta()
        for part in ("representation", "model"):
            checkpoint.refuse_difference(identity[part], meta[part], part)
        where = recipe.state_shardings(mesh).params
        state.params = other.restore_params(recipe.abstract_state().params, where)
        if state.ema is not None:
            state.ema = jax.tree.map(jax.numpy.copy, state.params)
    return 0, {}, state


def held_out(
    eval_step: Callable[..., Any],
    params: Any,
    loader: Loader,
    rows: NamedSharding,
    batches: int,
    guards: Guards,
) -> dict[str, float]:
    """Likelihood of the first so many held-out batches (0: all), each place weighing the same."""
    sums: dict[str, float] = {}
    for n, batch in enumerate(loader.eval_batches(sharding=rows)):
        if batches and n == batches:
            break
        guards.check("evaluate")
        for name, value in jax.device_get(eval_step(params, batch)).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    found = likelihood(sums, loader.representation.medium)
    return {f"heldout_{name}": value for name, value in found.items()}


def keep_compiled(folder: str, workdir: epath.Path) -> None:
    """Lets what is compiled be found again by the next start of the run, and by other processes.

    Args:
      folder: `config.compilation_cache`. "auto" keeps nothing on a CPU, where code is made for the
        instructions of this very processor, while a workdir may move to another.
    """
    if folder == "auto":
        folder = "" if jax.default_backend() == "cpu" else str(workdir / "compiled")
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)


def cpu_devices(config: ConfigDict) -> int:
    """How many devices to split a CPU into: as configured, else the cores that divide a batch."""
    if config.cpu_devices:
        return config.cpu_devices
    sizes = [config.mesh[axis] for axis in sharding.AXES]
    if -1 not in sizes:
        return math.prod(sizes)
    part = config.batch_size // config.optimizer.accumulate
    return max(n for n in range(1, num_cpus() + 1) if part % n == 0)


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    restart_with_large_pages()
    config, values = flags.FLAGS.config, flags.FLAGS
    checkpoint.quiet_libraries()
    sharding.split_cpu(cpu_devices(config))
    distributed.start_from_flags()
    train(
        config,
        values.workdir or f"runs/{config.representation.name}-{config.preset}",
        profile=values.profile,
    )


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to run: FILE[:PRESET].")
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Where everything goes; default runs/NAME-PRESET.")
    flags.DEFINE_string("profile", "", "Steps to trace, such as 100:105 (the last left out).")
    distributed.define_flags()


if __name__ == "__main__":
    _define_flags()
    command.run(main, NotFinite, ShardError, SaveError, MainProcessError)
