"""What the training of a tokenizer prints at its beginning and at its end."""

from __future__ import annotations

from collections.abc import Mapping

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.representations.vq.config import TokenizerConfig
from jpeglm_jax.model.flops import peak_flops
from jpeglm_jax.tokenizer import flops
from jpeglm_jax.tokenizer.step import TokenizerStep
from jpeglm_jax.training import checkpoint, messages
from jpeglm_jax.training.data import RunData


def described(shape: TokenizerConfig) -> str:
    """The tokens of an image in words."""
    kind = f"levels {shape.levels}" if shape.quantizer == "fsq" else f"{shape.num_codes:,} codes"
    return (
        f"{shape.num_positions} tokens ({shape.grid} x {shape.grid}) of {kind} for "
        f"{shape.size} x {shape.size} pixels ({shape.mode})"
    )


def opening(config: ConfigDict, step: TokenizerStep, mesh: Mesh, data: RunData, start: int) -> str:
    """Unused inputs, devices, tokenizer, data and steps, a line each."""
    device = mesh.devices.flat[0]
    peak = peak_flops(device)
    cost = flops.train_flops_per_image(step)
    mfu = f", over {peak / 1e12:,.0f} TFLOP/s each" if peak else ""
    return "\n".join(
        [
            *messages.unused(data.train),
            f"devices: {mesh.size} x {device.device_kind}{mfu}",
            f"tokenizer: {described(step.tokenizer.config)}; {step.num_parameters:,} parameters",
            f"training: {cost:.3g} FLOPs per image ({flops.FORMULA})",
            f"train split: {len(data.train):,} images; eval split: {len(data.eval):,}",
            *messages.shortened(config),
            f"steps: {start} to {config.steps}, batch size {config.batch_size}",
        ]
    )


def closing(
    workdir: epath.Path, shape: TokenizerConfig, steps: int, evaluated: Mapping[str, float]
) -> str:
    """What was reached, and where everything is."""
    lines = [f"done: {steps} steps"]
    if evaluated:
        used = evaluated["eval/codes_used"]
        lines.append(
            f"eval split: PSNR {evaluated['eval/psnr']:.2f} dB; {used:.1%} of {shape.num_codes:,} "
            f"codes used, perplexity {evaluated['eval/perplexity']:,.0f}"
        )
    lines += [
        f"  checkpoints      {checkpoint.folder(workdir)}",
        f"  curves           {workdir / 'metrics.jsonl'} and `tensorboard --logdir {workdir}`",
        f"  reconstructions  {workdir / 'samples'}",
        f"train a model on its codes: --config.representation.weights={workdir}",
    ]
    return "\n".join(lines)
