"""Example: python -m jpeglm_jax.compile --config=configs/jpeg.py:7b_v5p128 --topology=v5p:4x4x4

Compiles the very step that trains, for a pod that need not be there, and tells what it needs:
memory a device, collectives, operations, an estimate of its time. The numbers go to a file with
--json=FILE. For a TPU pod its compiler is needed, on any machine: pip install 'jax[tpu]'.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from data_pipelines import representations
from data_pipelines.utils import command
from jpeglm_jax.hardware import chips, topologies
from jpeglm_jax.hardware.hlo import Program
from jpeglm_jax.model import flops
from jpeglm_jax.model.attention import choose
from jpeglm_jax.model.config import ModelConfig, model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.sharding import BATCH_KEYS
from jpeglm_jax.training.step import TrainStep, check_mesh, compile_train_step

GIB = 2**30
HOW = (
    "cycles the compiler expects of XLA's operations, loops in full, over the clock; operations of "
    "the attention kernel, blocks on the diagonal in full, at the chip's peak; collectives at the "
    "bandwidth of the chip's links, those that run beside computation only where they are longer "
    "than it"
)


def make_train_step(config: ConfigDict, platform: str, vocab_size: int = 0) -> TrainStep:
    """The train step of a run, without its data.

    Args:
      config: the run's.
      platform: what it will run on: "cpu", "gpu" or "tpu".
      vocab_size: for a tokenizer that is not trained yet; 0: that of the configuration.

    Raises:
      ValueError: a representation or tokenizer that cannot be made.
    """
    if vocab_size:
        eos = 1
    else:
        # Labels are known when data is prepared: without data, a thousand of them.
        labels = 1000 if config.data.conditional else 0
        made = representations.make(**config.representation.to_dict(), num_labels=labels)
        vocab_size, eos = made.vocab_size, made.eos
    model = model_config(config.model, vocab_size, platform)
    return TrainStep(ModelSpec(model), config.optimizer, config.steps, eos)


def abstract_batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch, [rows, sequence length]."""
    shape = (config.batch_size, config.seq_len)
    types = dict.fromkeys(("weights", "codec_bytes"), np.float32)
    return {key: jax.ShapeDtypeStruct(shape, types.get(key, np.int32)) for key in BATCH_KEYS}


def compile_step(
    config: ConfigDict, devices: Sequence[jax.Device], vocab_size: int = 0
) -> dict[str, Any]:
    """Compiles the train step of `config` for `devices` and reads what comes out.

    Returns:
      devices, device_kind, mesh, batch_size, seq_len, accumulate, remat, attention, parameters,
      argument_gib, temp_gib, need_gib (a device: their sum), peak_gib, hbm_gib and fits (None where
      the memory is not known), flops (of the model, a device and step), collectives (by kind),
      estimated_gcycles and estimated_seconds (None where the compiler gives no cycles), how,
      compile_seconds, versions. What the compiler refuses for want of memory has `fits` False,
      `need_gib` and `refused`, its words.

    Raises:
      MeshError, ValueError: a run that the devices or the kernels do not allow.
    """
    mesh = sharding.make_mesh(
        {axis: config.mesh[axis] for axis in sharding.AXES},
        slices=config.mesh.slices,
        devices=devices,
    )
    train_step = make_train_step(config, devices[0].platform, vocab_size)
    check_mesh(config, train_step.model.config, mesh)
    known = chips.chip(devices[0].device_kind)
    report = description(config, train_step, mesh)
    started = time.monotonic()
    step, state = compile_train_step(train_step, mesh), train_step.abstract_state()
    try:
        with jax.set_mesh(mesh):
            compiled = step.jitted.lower(state, abstract_batch(config)).compile()  # type: ignore[attr-defined]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return report | refusal(str(error))
    report["compile_seconds"] = round(time.monotonic() - started, 1)
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    need = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    report |= dict(
        argument_gib=memory.argument_size_in_bytes / GIB,
        temp_gib=memory.temp_size_in_bytes / GIB,
        need_gib=need / GIB,
        peak_gib=memory.peak_memory_in_bytes / GIB,
        fits=need <= report["hbm_gib"] * GIB if report["hbm_gib"] else None,
        collectives=program.collectives(),
    )
    if known and known.clock_hz:
        cycles = program.cycles()
        report |= dict(
            estimated_gcycles=cycles / 1e9,
            estimated_seconds=seconds(train_step, config, known, mesh.size, cycles, report),
            how=HOW,
        )
    return report


def description(config: ConfigDict, train_step: TrainStep, mesh: Mesh) -> dict[str, Any]:
    """What is compiled, before it is."""
    device, model = mesh.devices.flat[0], train_step.model.config
    known = chips.chip(device.device_kind)
    per_token = flops.train_flops_per_token(model, config.seq_len)
    return dict(
        devices=mesh.size,
        device_kind=device.device_kind,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        grad_accum_steps=config.optimizer.grad_accum_steps,
        vocab_size=model.vocab_size,
        remat=model.remat,
        attention=choose(model.attention, device.platform),
        parameters=train_step.model.num_parameters,
        hbm_gib=known.hbm_gib if known else None,
        flops=per_token * config.batch_size * config.seq_len / mesh.size,
        estimated_gcycles=None,
        estimated_seconds=None,
        compiler_options=known.options if known else {},
        versions={"jax": jax.__version__},
    )


def refusal(message: str) -> dict[str, Any]:
    """What a compiler that ran out of memory said."""
    used = re.search(r"Used ([\d.]+)([KMGT])", message)
    scale = dict(K=2**-20, M=2**-10, G=1.0, T=2**10)
    return dict(
        fits=False,
        need_gib=float(used.group(1)) * scale[used.group(2)] if used else None,
        refused=message.splitlines()[0],
    )


def seconds(
    train_step: TrainStep,
    config: ConfigDict,
    chip: chips.Chip,
    devices: int,
    cycles: int,
    report: dict[str, Any],
) -> dict[str, float]:
    """An estimate of a step's time in seconds, and what it is made of; see HOW."""
    assert chip.clock_hz and chip.link_bytes  # of every TPU of the table
    parts = dict(
        xla=cycles / chip.clock_hz,
        attention=kernel_flops(train_step.model.config, config, chip, devices) / chip.peak_flops,
    )
    # Every byte of a sum crosses the links twice.
    rates = {
        kind: (2 if kind == "all-reduce" else 1) / chip.link_bytes for kind in report["collectives"]
    }
    moved = {kind: values["bytes"] for kind, values in report["collectives"].items()}
    beside = {kind: values["bytes_beside"] for kind, values in report["collectives"].items()}
    parts["collectives_beside"] = sum(rates[kind] * beside[kind] for kind in rates)
    parts["collectives_alone"] = sum(rates[kind] * (moved[kind] - beside[kind]) for kind in rates)
    busy = max(parts["xla"] + parts["attention"], parts["collectives_beside"])
    return dict(total=busy + parts["collectives_alone"], **parts)


def kernel_flops(model: ModelConfig, config: ConfigDict, chip: chips.Chip, devices: int) -> float:
    """Operations of the TPU attention kernel, which the cycles leave out, on each device."""
    if choose(model.attention, "tpu") != "splash":
        return 0.0  # plain forms are XLA's own operations
    from jpeglm_jax.model.kernels import splash

    length, blocks = config.seq_len, chip.splash
    forwards = splash.share_computed(length, blocks.q, blocks.kv)
    backwards = splash.share_computed(length, blocks.q_dkv, blocks.kv_dkv)
    # Products of [queries, head] and [head, keys]: two forwards, five backwards.
    products = 2 * forwards * (2 if model.recomputes_attention else 1) + 5 * backwards
    pairs = config.batch_size / devices * model.layers * model.heads * length**2
    return products * pairs * 2 * model.head_dim


def words(report: dict[str, Any]) -> str:
    """The report for a person."""
    split = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    lines = [
        f"{report['topology']}: {report['devices']} x {report['device_kind']} ({split or 'alone'})",
        f"{report['parameters']:,} parameters; {report['batch_size']} rows of "
        f"{report['seq_len']:,} places in {report['grad_accum_steps']} parts; remat "
        f"{report['remat']}, attention {report['attention']}",
    ]
    if "refused" in report:
        return "\n".join([*lines, f"DOES NOT FIT: {report['refused']}"])
    lines.append(
        f"memory a device: {report['argument_gib']:.2f} GiB of state and batch + "
        f"{report['temp_gib']:.2f} while computing = {report['need_gib']:.2f} GiB"
        f" (most at one time: {report['peak_gib']:.2f})"
    )
    if report["hbm_gib"]:
        spare = report["hbm_gib"] - report["need_gib"]
        verdict = f"fits, {spare:.2f} GiB to spare" if report["fits"] else "DOES NOT FIT"
        lines.append(f"of {report['hbm_gib']:g} GiB: {verdict}")
    for kind, c in report["collectives"].items():
        lines.append(
            f"{kind}: {c['count']} in the program, {c['runs']} a step, {c['bytes'] / 1e9:.2f} GB a "
            f"device and step, {c['asynchronous']} of {c['count']} beside computation"
        )
    lines.append(f"operations of the model: {report['flops']:.3g} a device and step")
    if estimate := report["estimated_seconds"]:
        lines += [
            f"estimated cycles of XLA's operations: {report['estimated_gcycles']:.2f} G",
            f"estimated step: {estimate['total']:.2f} s = {estimate['xla']:.2f} XLA + "
            f"{estimate['attention']:.2f} attention + {estimate['collectives_alone']:.2f} "
            f"collectives alone ({estimate['collectives_beside']:.2f} beside)",
            f"  made of {HOW}",
        ]
    else:
        lines.append("no estimate of time: this compiler gives no cycles")
    return "\n".join([*lines, f"compiled in {report['compile_seconds']:.0f} s"])


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    config, topology = flags.FLAGS.config, flags.FLAGS.topology
    jax.config.update("jax_platforms", "cpu")  # an accelerator that is here is not touched
    name, _, count = topology.partition(":")
    if name == "cpu" and count.isdigit():
        sharding.split_cpu(int(count))
    devices = topologies.describe(topology, config.mesh.slices)
    report = {"topology": topology} | compile_step(config, devices, flags.FLAGS.vocab_size)
    print(words(report))
    if flags.FLAGS.json:
        epath.Path(flags.FLAGS.json).write_text(
            json.dumps(report, indent=2, allow_nan=False) + "\n"
        )


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to compile: FILE[:PRESET].")
    flags.DEFINE_string("topology", None, "For what: v5p:4x4x4, v5e:16x16, v6e:16x16, cpu:8.")
    flags.mark_flags_as_required(["config", "topology"])
    flags.DEFINE_integer("vocab_size", 0, "Of a tokenizer that is not trained yet.")
    flags.DEFINE_string("json", None, "Where to write the numbers.")


if __name__ == "__main__":
    _define_flags()
    command.run(main)
