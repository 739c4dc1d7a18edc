"""What a run says at its beginning and at its end, for the person watching."""

from __future__ import annotations

import math

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.loading.joined_shards import JoinedShards
from data_pipelines.loading.loader import Loader
from jpeglm_jax.model import flops
from jpeglm_jax.training import checkpoint
from jpeglm_jax.training.step import Recipe


def opening(
    config: ConfigDict, recipe: Recipe, mesh: Mesh, loader: Loader, eval_loader: Loader, start: int
) -> str:
    """What is about to be done."""
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


def set_aside(documents: JoinedShards) -> list[str]:
    """How many images could not be read, why, and where each is named; nothing if all could."""
    lines = []
    for part in documents.parts:
        rejects = part.manifest["rejects"]
        if rejects["count"]:
            named = f"each named in {part.folder / rejects['file']}"
            lines.append(f"set aside: {rejects['count']:,} images, {named}")
            lines += [f"{count:10,}  {reason}" for reason, count in rejects["reasons"].items()]
    return lines


def closing(workdir: epath.Path, config: ConfigDict, last: dict[str, float]) -> str:
    """What was reached, and where everything is."""
    lines = [f"done: {config.steps} steps"]
    for medium in ("image", "clip"):
        bits = last.get(f"heldout_bits_per_{medium}")
        if bits is not None and "heldout_bits_per_byte" in last:
            stored = bits / last["heldout_bits_per_byte"] * 8
            lines.append(
                f"held out: {bits:.1f} bits {'an' if medium == 'image' else 'a'} {medium}, where "
                f"the file's own code takes {stored:.1f}"
            )
    lines += [
        f"  checkpoints  {checkpoint.folder(workdir)}",
        f"  curves       {workdir / 'metrics.jsonl'} and `tensorboard --logdir {workdir}`",
        f"  samples      {workdir / 'samples'}",
        f"more samples: python -m jpeglm_jax.generate --checkpoint={workdir} --out=DIR",
    ]
    return "\n".join(lines)


def interrupted(step: int, workdir: epath.Path) -> str:
    """What is kept of a run that was told to stop."""
    return (
        f"interrupted: step {step} is kept in {checkpoint.folder(workdir)}; the same command goes "
        "on from it"
    )
