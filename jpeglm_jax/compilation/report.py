"""Compiles the train step of a configuration for described devices and reads the program.

Used by `jpeglm_jax.compile`, by its search, and by the benchmark of the train step.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm_jax.compilation import estimate, ptxas
from jpeglm_jax.hardware import chips
from jpeglm_jax.hardware.hlo import Program
from jpeglm_jax.model import flops
from jpeglm_jax.model.attention import choose
from jpeglm_jax.model.config import ModelConfig, model_config
from jpeglm_jax.model.kernels.shape import AttentionShape
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.sharding import BATCH_KEYS
from jpeglm_jax.training.step import TrainStep, check_mesh, compile_train_step

GIB = 2**30


def make_train_step(config: ConfigDict, platform: str) -> TrainStep:
    """The train step of a run, without its data.

    Args:
      config: the run's.
      platform: what it will run on: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: a representation or tokenizer that cannot be made.
    """
    # Labels are known when data is prepared: without data, a thousand of them.
    labels = 1000 if config.data.conditional else 0
    if config.data.train_tokenizer.vocab_size:  # preparation will train it
        vocab_size, eos = config.data.train_tokenizer.vocab_size + labels, 1
    else:
        from data_pipelines import representations  # needs the codecs, which a GPU machine may lack

        made = representations.make(**config.representation.to_dict(), num_labels=labels)
        vocab_size, eos = made.vocab_size, made.eos
    model = model_config(config.model, vocab_size, platform)
    return TrainStep(ModelSpec(model), config.optimizer, config.steps, eos)


def abstract_batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch, [rows, sequence length]."""
    shape = (config.batch_size, config.seq_len)
    types = dict.fromkeys(("weights", "codec_bytes"), np.float32)
    return {key: jax.ShapeDtypeStruct(shape, types.get(key, np.int32)) for key in BATCH_KEYS}


def attention_shape(model: ModelConfig, seq_len: int, device_kind: str) -> AttentionShape:
    """What the model asks of an attention kernel."""
    return AttentionShape(seq_len, model.head_dim, model.dtype, model.max_documents, device_kind)


def compile_step(
    config: ConfigDict,
    devices: Sequence[jax.Device],
    *,
    registers: bool = False,
) -> dict[str, Any]:
    """Compiles the train step of `config` for `devices` and reads what comes out.

    Args:
      config: the run's.
      devices: described or present; see `topologies.describe`.
      registers: also assemble the attention kernels of a GPU, where `ptxas` is installed.

    Returns:
      devices, device_kind, mesh, batch_size, seq_len, grad_accum_steps, remat, attention,
      max_documents, parameters, argument_gib, temp_gib, need_gib (per device: their sum), peak_gib,
      hbm_gib, usable_gib and fits (None where the memory is not known), flops (of the model, per
      device and step), product_flops (of the program's matrix products), kernels (calls of
      attention kernels per step), registers (of each kernel, if wanted), collectives (by kind),
      estimated_gcycles (of a TPU), estimated_seconds (None where there are no rates), how,
      compile_seconds, versions. What the compiler rejects for want of memory has `fits` False,
      `need_gib` and `rejected`, its message.

    Raises:
      MeshError, ValueError: a run that the devices or the kernels do not allow.
    """
    mesh = sharding.make_mesh(
        {axis: config.mesh[axis] for axis in sharding.AXES},
        slices=config.mesh.slices,
        devices=devices,
    )
    train_step = make_train_step(config, devices[0].platform)
    check_mesh(config, train_step.model.config, mesh)
    report = description(config, train_step, mesh)
    started = time.monotonic()
    step, state = compile_train_step(train_step, mesh), train_step.abstract_state()
    on_gpu = devices[0].platform == "gpu"
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        if on_gpu:  # kernels of tokamax ask for the default device
            stack.enter_context(jax.default_device(devices[0]))
        dump = stack.enter_context(tempfile.TemporaryDirectory()) if registers and on_gpu else ""
        lowered = step.jitted.lower(state, abstract_batch(config))  # type: ignore[attr-defined]
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": dump} if dump else None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return report | rejection(str(error))
        if dump:
            report["registers"] = ptxas.registers(dump)
    report["compile_seconds"] = round(time.monotonic() - started, 1)
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    need = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    report |= dict(
        argument_gib=memory.argument_size_in_bytes / GIB,
        temp_gib=memory.temp_size_in_bytes / GIB,
        need_gib=need / GIB,
        peak_gib=memory.peak_memory_in_bytes / GIB,
        fits=need <= report["usable_gib"] * GIB if report["usable_gib"] else None,
        product_flops=program.product_flops(),
        kernels=program.kernels(),
        collectives=program.collectives(),
    )
    return report | estimate.estimate(config, train_step.model.config, mesh, program, report)


def description(config: ConfigDict, train_step: TrainStep, mesh: Mesh) -> dict[str, Any]:
    """What is compiled, before it is."""
    device, model = mesh.devices.flat[0], train_step.model.config
    known = chips.chip(device.device_kind)
    per_token = flops.train_flops_per_token(model, config.seq_len)
    shape = attention_shape(model, config.seq_len, device.device_kind)
    return dict(
        devices=mesh.size,
        device_kind=device.device_kind,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        grad_accum_steps=config.optimizer.grad_accum_steps,
        vocab_size=model.vocab_size,
        remat=model.remat,
        attention=choose(model.attention, device.platform, shape),
        max_documents=model.max_documents,
        parameters=train_step.model.num_parameters,
        hbm_gib=known.hbm_gib if known else None,
        usable_gib=known.usable_gib if known else None,
        flops=per_token * config.batch_size * config.seq_len / mesh.size,
        estimated_gcycles=None,
        estimated_seconds=None,
        compiler_options=known.options if known else {},
        versions={"jax": jax.__version__},
    )


def rejection(message: str) -> dict[str, Any]:
    """What a compiler that ran out of memory reports."""
    used = re.search(r"Used ([\d.]+)([KMGT])", message)
    scale = dict(K=2**-20, M=2**-10, G=1.0, T=2**10)
    return dict(
        fits=False,
        need_gib=float(used.group(1)) * scale[used.group(2)] if used else None,
        rejected=message.splitlines()[0],
    )


def text(report: dict[str, Any]) -> str:
    """The report for a person."""
    split = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    lines = [
        f"{report['topology']}: {report['devices']} x {report['device_kind']} "
        f"({split or 'one device'})",
        f"{report['parameters']:,} parameters; {report['batch_size']} rows of sequence length "
        f"{report['seq_len']:,} in {report['grad_accum_steps']} parts; remat {report['remat']}, "
        f"attention {report['attention']}",
    ]
    if "rejected" in report:
        return "\n".join([*lines, f"DOES NOT FIT: {report['rejected']}"])
    lines.append(
        f"memory per device: {report['argument_gib']:.2f} GiB of state and batch + "
        f"{report['temp_gib']:.2f} while computing = {report['need_gib']:.2f} GiB"
        f" (most at one time: {report['peak_gib']:.2f})"
    )
    if usable := report["usable_gib"]:
        spare = usable - report["need_gib"]
        verdict = f"fits, {spare:.2f} GiB to spare" if report["fits"] else "DOES NOT FIT"
        lines.append(f"of {report['hbm_gib']:g} GiB, {usable:.1f} usable: {verdict}")
    for kind, c in report["collectives"].items():
        lines.append(
            f"{kind}: {c['count']} in the program, {c['runs']} per step, {c['bytes'] / 1e9:.2f} GB "
            f"per device and step, {c['concurrent']} of {c['count']} concurrent with computation"
        )
    for kernel, calls in report["kernels"].items():
        lines.append(f"attention kernel {kernel}: {calls} calls per step")
    for kernel in report.get("registers") or ():
        lines.append(
            f"{kernel['kernel']}: {kernel['registers']} registers per thread, "
            f"{kernel['spilled_bytes']} bytes spilled"
        )
    lines.append(f"operations of the model: {report['flops']:.3g} per device and step")
    if report["estimated_gcycles"]:
        lines.append(
            f"estimated cycles of XLA's operations: {report['estimated_gcycles']:.2f} G",
        )
    elif report["product_flops"]:
        lines.append(f"operations of matrix products: {report['product_flops']:.3g}")
    if seconds := report["estimated_seconds"]:
        busy = " + ".join(
            f"{value:.2f} {part}"
            for part, value in seconds.items()
            if part in ("xla", "products", "attention")
        )
        lines += [
            f"estimated step: {seconds['total']:.2f} s = {busy} + "
            f"{seconds['collectives_alone']:.2f} collectives alone "
            f"({seconds['collectives_concurrent']:.2f} concurrent)",
            f"  from {report['how']}",
        ]
    else:
        lines.append("no estimate of time: there are no rates of this device")
    return "\n".join([*lines, f"compiled in {report['compile_seconds']:.0f} s"])
