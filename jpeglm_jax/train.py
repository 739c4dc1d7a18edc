"""Example: python -m jpeglm_jax.train --config=configs/jpeg.py

Trains a Llama on the tokens of a representation. Give a preset after a colon
(configs/jpeg.py:cifar10), change any value (--config.optimizer.learning_rate=1e-3), choose where
everything goes (--workdir=DIR). The same command again goes on from the newest checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict, config_flags

from data_pipelines import command, packing, representations, sheet
from data_pipelines.input import Loader
from data_pipelines.preparation.launchers import num_cpus
from data_pipelines.prepare import prepare
from data_pipelines.representations.base import Representation
from data_pipelines.shard_files import ShardError
from data_pipelines.shards import Shards, read_manifest
from jpeglm_jax import checkpoint, flops, optimizer, sharding
from jpeglm_jax.checkpoint import Checkpoints
from jpeglm_jax.engine import Engine
from jpeglm_jax.metrics import Console, Meter, MetricsLog, likelihood
from jpeglm_jax.pages import restart_with_large_pages
from jpeglm_jax.prompts import every_label, of_labels
from jpeglm_jax.sampling import Filter
from jpeglm_jax.step import (
    BATCH_AXES,
    Recipe,
    TrainState,
    batch_shardings,
    check_mesh,
    compile_eval_step,
    compile_init,
    compile_train_step,
    compiled,
    model_config,
)


class NotFinite(RuntimeError):
    """The loss or a gradient was not a finite number."""


def train(config: ConfigDict, workdir: epath.PathLike) -> dict[str, float]:
    """Runs, or goes on with, the training that `config` describes.

    Everything is written to `workdir`: config.json, metrics.jsonl, tensorboard/, checkpoints/,
    samples/, and data/ if the documents were prepared here.

    Returns:
      The last held-out metrics.

    Raises:
      MeshError, CheckpointError, SettingsError, SourceError, ShardError, ValueError: what was asked
        for cannot be done; said before any step.
      NotFinite: training diverged; the checkpoints are from before that.
    """
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    main = jax.process_index() == 0

    # --- Devices ----------------------------------------------------------------------------------
    mesh = sharding.make_mesh(
        {axis: config.mesh[axis] for axis in sharding.AXES}, slices=config.mesh.slices
    )
    rows = sharding.named(mesh, *BATCH_AXES)

    # --- Data -------------------------------------------------------------------------------------
    folder = config.data.shards or prepare_here(config, workdir)
    documents, heldout = Shards(folder, "train"), held_out_documents(config, folder)
    representation = documents.representation
    check_representation(config, representation)
    loader = make_loader(config, documents, config.data.label_dropout)
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
    )
    console = Console(config.steps, start, quiet=not main)
    log = MetricsLog(workdir, start, tensorboard=config.log.tensorboard) if main else None
    if main:
        representation.save(workdir)
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
    for line in set_aside(documents):
        console.say(line)
    console.say(opening_words(config, recipe, mesh, loader, eval_loader, start))

    def report(at: int, values: dict[str, float]) -> dict[str, float]:
        console.metrics(at, values)
        if log:
            log.write(at, values)
        return values

    # --- Held-out evaluation and samples ----------------------------------------------------------
    def evaluate(params: Any, batches: int) -> dict[str, float]:
        return held_out(eval_step, params, eval_loader, rows, batches)

    engine = Engine(
        recipe,
        mesh,
        Filter.of(config.sample),
        batch_size=min(config.sample.num, config.sample.batch_size),
        length=config.row_length,
        seed=config.seed,
        bos=representation.bos,
    )

    def draw_samples(params: Any, at: int) -> dict[str, float]:
        labels = every_label(representation, config.sample.num)
        prompts = [request.prompt for request in of_labels(representation, labels)]
        drawn = sorted(engine(params, prompts), key=lambda sample: sample.number)
        samples = [sample.tokens for sample in drawn]
        if log:
            picture = sheet.sheet_of_documents(representation, samples)
            (workdir / "samples").mkdir(exist_ok=True)
            sheet.save(picture, workdir / "samples" / f"step_{at:08d}.png")
            log.image(at, "samples", np.asarray(picture))
        valid = [representation.inspect(tokens).valid for tokens in samples]
        return {"samples_valid": sum(valid) / len(valid)}

    evaluate(averaged(state), batches=2)  # a broken evaluation shows now, not after an hour

    # --- Loop -------------------------------------------------------------------------------------
    # Metrics of a step are read after the next one is under way, so that the device never waits.
    unread: tuple[int, Any] | None = None

    def read_metrics() -> None:
        nonlocal unread
        if unread is None:
            return
        (at, values), unread = (unread[0], jax.device_get(unread[1])), None
        if not values["finite"]:
            raise NotFinite(where_not_finite(recipe, mesh, state.params, loader, documents, at))
        meter.add(values, config.batch_size * config.row_length)
        console.step(at)
        if at % config.log.every == 0 or at == config.steps:
            now = {"learning_rate": float(learning_rate(at - 1))}
            now["epoch"] = max(loader.plan.epochs(at * config.batch_size))
            report(at, meter.read() | now)

    batches = iter(loader.batches(start, sharding=rows))
    last: dict[str, float] = {}
    try:
        for at in range(start + 1, config.steps + 1):
            state, values = train_step(state, next(batches))
            read_metrics()
            unread = (at, values)
            if due(at, config.evaluate.every, config.steps):
                read_metrics()
                with meter.paused():
                    last = report(at, evaluate(averaged(state), config.evaluate.batches))
            if due(at, config.sample.every, config.steps):
                read_metrics()
                with meter.paused():
                    report(at, draw_samples(averaged(state), at))
            if due(at, config.checkpoint.every, config.steps):
                read_metrics()
                with meter.paused():
                    position = {"step": at, "meter": meter.state}
                    checkpoints.save(at, state, identity | about(config) | position)
    finally:
        checkpoints.close()
        console.close()
        if log:
            log.close()
    if main:
        print(closing_words(workdir, config, last), flush=True)
    return last


def due(step: int, every: int, steps: int) -> bool:
    """Whether something done every so many steps (0: never), and at the end, is due."""
    return bool(every) and (step % every == 0 or step == steps)


def averaged(state: TrainState) -> Any:
    """The weights to judge and to sample from: their average if there is one."""
    return state.params if state.ema is None else state.ema


def prepare_here(config: ConfigDict, workdir: epath.Path) -> epath.Path:
    """Prepares `config.data.source` into the workdir, once; the other processes wait for it."""
    folder = workdir / "data"
    if jax.process_index() == 0:
        prepare(
            source=config.data.source,
            representation=config.representation.to_dict(),
            out=folder,
            conditional=config.data.conditional,
            copies=config.data.copies,
            augment=config.data.augment.to_dict(),
            heldout=config.data.heldout,
        )
    multihost_utils.sync_global_devices("data prepared")
    return folder


def held_out_documents(config: ConfigDict, folder: epath.PathLike) -> Shards:
    """What the run is judged on. Raises ValueError if no image was held out."""
    splits = read_manifest(folder)["splits"]
    if not splits.get("heldout", {}).get("documents"):
        raise ValueError(
            f"{folder} has no held-out documents, which a run is judged on: data.heldout = "
            f"{config.data.heldout} keeps none of {splits['train']['images']:,} images from "
            "training. Raise it, in a new workdir (or prepare the shards again)"
        )
    return Shards(folder, "heldout")


def check_representation(config: ConfigDict, found: Representation) -> None:
    """Refuses shards that are not what the configuration describes.

    The tokenizer and the labels are the shards' own: preparation may have trained the one and
    found the other.
    """
    expected = representations.make(**{**config.representation, "tokenizer": "bytes"})
    ours, theirs = expected.to_config(), found.to_config()
    del ours["tokenizer"], theirs["tokenizer"]
    checkpoint.refuse_difference(ours, theirs, "representation", "the folder of shards")


def make_loader(config: ConfigDict, documents: Shards, label_dropout: float) -> Loader:
    """Documents -> batches of packed rows."""
    plan = packing.plan(
        documents.lengths + 1,
        row_length=config.row_length,
        mode=config.data.packing,
        too_long=config.data.too_long,
        seed=config.seed,
    )
    return Loader(
        documents,
        plan,
        batch_size=config.batch_size,
        seed=config.seed,
        label_dropout=label_dropout,
    )


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
) -> dict[str, float]:
    """Likelihood of the first so many held-out batches (0: all), each place weighing the same."""
    sums: dict[str, float] = {}
    for n, batch in enumerate(loader.eval_batches(sharding=rows)):
        if batches and n == batches:
            break
        for name, value in jax.device_get(eval_step(params, batch)).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {f"heldout_{name}": value for name, value in likelihood(sums).items()}


def where_not_finite(
    recipe: Recipe, mesh: Mesh, params: Any, loader: Loader, documents: Shards, at: int
) -> str:
    """One paragraph on a step that went wrong: which gradients, which documents."""
    batch = next(iter(loader.batches(at - 1, sharding=sharding.named(mesh, *BATCH_AXES))))
    in_shardings = (recipe.state_shardings(mesh).params, batch_shardings(mesh))
    counts = compiled(recipe.not_finite, mesh, in_shardings=in_shardings)(params, batch)
    wrong = [f"{name} ({int(n):,} entries)" for name, n in jax.device_get(counts).items() if n]
    first = (at - 1) * loader.batch_size
    pieces = loader.plan.rows(np.arange(first, first + loader.batch_size)).pieces
    numbers = np.unique(pieces[:, 0]).tolist()
    keys = [documents.key(n) for n in numbers[:8]]
    return (
        f"step {at}: the loss or a gradient is not finite. Gradients that are not: "
        f"{', '.join(wrong) or 'none when computed again, so the cause is in how it was computed'}."
        f" Documents of the batch: {', '.join(keys)}"
        f"{f' and {len(numbers) - 8} more' if len(numbers) > 8 else ''}. The weights were left as "
        "they were before this step; the newest checkpoint is whole. Lower "
        "optimizer.learning_rate, or turn on model.qk_norm or optimizer.z_loss."
    )


def opening_words(
    config: ConfigDict, recipe: Recipe, mesh: Mesh, loader: Loader, eval_loader: Loader, start: int
) -> str:
    """What is about to be done, for the person watching."""
    shapes = recipe.abstract_state().params
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    kind = mesh.devices.flat[0].device_kind
    split = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    peak = flops.peak_flops(mesh.devices.flat[0])
    mfu = f"MFU = {flops.FORMULA}, over {peak / 1e12:,.0f} TFLOP/s" if peak else "no MFU: the peak "
    if not peak:
        mfu += "of this device is not known"
    return "\n".join(
        [
            f"{mesh.size} x {kind}" + (f" ({split})" if split else "") + f"; {mfu}",
            f"model: {count:,} parameters, {recipe.model.dtype}",
            f"training: {loader.plan}",
            f"held out: {eval_loader.plan}",
            f"steps: {start} to {config.steps}, {config.batch_size} rows of "
            + f"{config.row_length:,} places each",
        ]
    )


def set_aside(documents: Shards) -> list[str]:
    """How many images could not be read, why, and where each is named; nothing if all could."""
    rejects = documents.manifest["rejects"]
    if not rejects["count"]:
        return []
    named = f"each named in {documents.folder / rejects['file']}"
    counted = f"set aside: {rejects['count']:,} images, {named}"
    return [counted, *(f"{count:10,}  {reason}" for reason, count in rejects["reasons"].items())]


def closing_words(workdir: epath.Path, config: ConfigDict, last: dict[str, float]) -> str:
    """What was reached, and where everything is."""
    lines = [f"done: {config.steps} steps"]
    if "heldout_bits_per_image" in last and "heldout_bits_per_byte" in last:
        stored = last["heldout_bits_per_image"] / last["heldout_bits_per_byte"] * 8
        lines.append(
            f"held out: {last['heldout_bits_per_image']:.1f} bits an image, where the file's own "
            f"code takes {stored:.1f}"
        )
    lines += [
        f"  checkpoints  {checkpoint.folder(workdir)}",
        f"  curves       {workdir / 'metrics.jsonl'} and `tensorboard --logdir {workdir}`",
        f"  samples      {workdir / 'samples'}",
        f"more samples: python -m jpeglm_jax.generate --checkpoint={workdir} --out=DIR",
    ]
    return "\n".join(lines)


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
    config = flags.FLAGS.config
    checkpoint.quiet_libraries()
    sharding.split_cpu(cpu_devices(config))
    train(
        config,
        flags.FLAGS.workdir or f"runs/{config.representation.name}-{config.preset}",
    )


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to run: FILE[:PRESET].")
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Where everything goes; default runs/NAME-PRESET.")


if __name__ == "__main__":
    _define_flags()
    command.run(main, NotFinite, ShardError)
