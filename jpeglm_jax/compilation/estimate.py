"""Estimates the time of a compiled step: never a measurement, and called an estimate everywhere.

A TPU's compiler gives cycles. A GPU's gives none: there the operations of the program are divided
by rates that are stated here.
"""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm_jax.hardware import chips
from jpeglm_jax.hardware.chips import Chip
from jpeglm_jax.hardware.hlo import Program
from jpeglm_jax.hardware.topologies import GPUS_PER_MACHINE
from jpeglm_jax.model.config import ModelConfig

TPU_HOW = (
    "cycles the compiler expects of XLA's operations, loops in full, over the clock; operations of "
    "the attention kernel, blocks on the diagonal in full, at the chip's peak; collectives at the "
    "bandwidth of the chip's links, those concurrent with computation only where they are longer "
    "than it"
)
GPU_HOW = (
    "operations of the program's matrix products at two thirds of the peak; causal attention of "
    "full rows at its kernel's published rate; collectives at the bandwidth of NVLink, or of the "
    "network between machines, those concurrent with computation only where they are longer than "
    "it; nothing else"
)
# Share of a GPU's peak that large bfloat16 products reach: 650 of an H100's 989 TFLOP/s.
PRODUCTS = 0.66
# Published rates of attention on an H100 SXM, operations per second forwards and backwards, causal,
# head size 128: cuDNN and tokamax by their authors, Triton for JAX's Pallas kernel.
KERNEL_RATES = {
    "cudnn": (629e12, 520e12),
    "tokamax": (620e12, 440e12),
    "triton": (360e12, 203e12),
}
H100_PEAK = 989e12


def estimate(
    config: ConfigDict, model: ModelConfig, mesh: Mesh, program: Program, report: dict[str, Any]
) -> dict[str, Any]:
    """estimated_seconds and what they are made of; empty for a device without rates.

    Args:
      config: the run's.
      model: its shape.
      mesh: what the program was compiled for.
      program: the compiled step.
      report: of the step so far: attention, product_flops, collectives.
    """
    known = chips.chip(mesh.devices.flat[0].device_kind)
    if not known or not known.link_bytes:
        return {}
    rows = config.batch_size / mesh.size
    if known.clock_hz:
        cycles = program.cycles()
        parts = dict(
            xla=cycles / known.clock_hz,
            attention=splash_flops(report["attention"], model, config.seq_len, rows, known)
            / known.peak_flops,
        )
        seconds = _total(parts, report["collectives"], known.link_bytes)
        return dict(estimated_gcycles=cycles / 1e9, estimated_seconds=seconds, how=TPU_HOW)
    parts = dict(
        products=report["product_flops"] / (PRODUCTS * known.peak_flops),
        attention=gpu_attention(report["attention"], model, config.seq_len, rows, known),
    )
    link = known.link_bytes
    if mesh.size > GPUS_PER_MACHINE and known.network_bytes:
        # A ring passes between machines over all their adapters at once.
        link = min(link, GPUS_PER_MACHINE * known.network_bytes)
    return dict(estimated_seconds=_total(parts, report["collectives"], link), how=GPU_HOW)


def _total(
    parts: dict[str, float], collectives: dict[str, dict[str, int]], link_bytes: float
) -> dict[str, float]:
    """Seconds of a step, and those of its parts and its collectives."""
    concurrent = alone = 0.0
    for kind, values in collectives.items():
        crossings = 2 if kind == "all-reduce" else 1  # every byte of a sum crosses the links twice
        concurrent += crossings * values["bytes_concurrent"] / link_bytes
        alone += crossings * (values["bytes"] - values["bytes_concurrent"]) / link_bytes
    return dict(
        total=max(sum(parts.values()), concurrent) + alone,
        **parts,
        collectives_concurrent=concurrent,
        collectives_alone=alone,
    )


def splash_flops(
    attention: str, model: ModelConfig, seq_len: int, rows: float, chip: Chip
) -> float:
    """Operations of the TPU attention kernel, which the cycles do not cover, on each device."""
    if attention != "splash":
        return 0.0  # plain forms are XLA's own operations
    from jpeglm_jax.model.kernels import splash

    blocks = chip.splash
    forwards = splash.share_computed(seq_len, blocks.q, blocks.kv)
    backwards = splash.share_computed(seq_len, blocks.q_dkv, blocks.kv_dkv)
    # Products of [queries, head] and [head, keys]: two forwards, five backwards.
    products = 2 * forwards * (2 if model.recomputes_attention else 1) + 5 * backwards
    return products * rows * model.layers * model.heads * seq_len**2 * 2 * model.head_dim


def gpu_attention(
    attention: str, model: ModelConfig, seq_len: int, rows: float, chip: Chip
) -> float:
    """Seconds of a GPU's attention kernel on each device: the causal half of full rows."""
    if attention not in KERNEL_RATES:
        return 0.0  # plain forms are products of the program
    forwards, backwards = (rate * chip.peak_flops / H100_PEAK for rate in KERNEL_RATES[attention])
    product = rows * model.layers * model.heads * seq_len**2 * model.head_dim
    return product * (2 * (2 if model.recomputes_attention else 1) / forwards + 5 / backwards)
