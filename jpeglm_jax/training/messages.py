"""What a run prints at its beginning and at its end."""

from __future__ import annotations

from collections.abc import Mapping

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.loading.joined_shards import JoinedShards
from data_pipelines.shards.reader import skipped_text
from jpeglm_jax.model import flops
from jpeglm_jax.training import checkpoint, optimizer
from jpeglm_jax.training.data import RunData
from jpeglm_jax.training.step import TrainStep


def opening(
    config: ConfigDict, train_step: TrainStep, mesh: Mesh, data: RunData, start: int
) -> str:
    """Unused inputs, devices, model, data and steps, a line each."""
    kind = mesh.devices.flat[0].device_kind
    split = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    peak = flops.peak_flops(mesh.devices.flat[0])
    mfu = (
        f"MFU = {flops.FORMULA}, over {peak / 1e12:,.0f} TFLOP/s"
        if peak
        else "no MFU: the peak of this device is not known"
    )
    model = train_step.model
    return "\n".join(
        [
            *unused(data.train),
            f"devices: {mesh.size} x {kind}" + (f" ({split})" if split else "") + f"; {mfu}",
            f"model: {model.num_parameters:,} parameters, {model.config.dtype}",
            f"train split: {data.train_loader.plan}",
            f"eval split: {data.eval_loader.plan}",
            *shortened(config),
            f"steps: {start} to {config.steps}, batch size {config.batch_size}, sequence length "
            f"{config.seq_len:,}",
        ]
    )


def shortened(config: ConfigDict) -> list[str]:
    """A line about a learning-rate schedule that was scaled to a short run; none otherwise."""
    parts = optimizer.lengths(config.optimizer, config.steps)
    if not parts.scaled:
        return []
    return [
        f"schedule: a run of {config.steps} steps is too short for the configured one, which was "
        f"scaled to {parts.warmup} steps of warm-up and {parts.decay} of decay"
    ]


def unused(documents: JoinedShards) -> list[str]:
    """Inputs that were rejected or skipped, and warnings of preparation; no line without any.

    A line about rejected inputs is followed by their reasons, and names the file that lists them.
    """
    lines = []
    for part in documents.parts:
        rejects = part.manifest["rejects"]
        if rejects["count"]:
            named = f"each named in {part.folder / rejects['file']}"
            lines.append(f"rejected: {rejects['count']:,} inputs, {named}")
            lines += [f"{count:10,}  {reason}" for reason, count in rejects["reasons"].items()]
        if part.manifest["skipped"]:
            lines.append(f"skipped in {part.folder}: {skipped_text(part.manifest)}")
        lines += [f"warning: {part.folder}: {text}" for text in part.manifest["warnings"]]
    return lines


_RATES = ("eval/bits_per_byte", "eval/bits_per_dimension")  # not of a whole medium


def closing(workdir: epath.Path, steps: int, evaluated: Mapping[str, float]) -> str:
    """What was reached, and where everything is."""
    lines = [f"done: {steps} steps"]
    for name, bits in evaluated.items():
        if name.startswith("eval/bits_per_") and name not in _RATES:
            medium = name.removeprefix("eval/bits_per_")
            line = f"eval split: {bits:.1f} bits per {medium}"
            if per_byte := evaluated.get("eval/bits_per_byte"):
                line += f"; the file itself takes {bits / per_byte * 8:.1f}"
            if per_dimension := evaluated.get("eval/bits_per_dimension"):
                line += f", {per_dimension:.3f} bits per dimension"
            lines.append(line)
    lines += [
        f"  checkpoints  {checkpoint.folder(workdir)}",
        f"  curves       {workdir / 'metrics.jsonl'} and `tensorboard --logdir {workdir}`",
        f"  samples      {workdir / 'samples'}",
        f"more samples: python -m jpeglm_jax.generate --workdir={workdir} --out=DIR",
    ]
    return "\n".join(lines)


def interrupted(step: int, workdir: epath.Path) -> str:
    """What is kept of an interrupted run."""
    if not step:
        return "interrupted before the first step; the same command starts again"
    return (
        f"interrupted: step {step} is kept in {checkpoint.folder(workdir)}; the same command "
        "resumes from it"
    )
