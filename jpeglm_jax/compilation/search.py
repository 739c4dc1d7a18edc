"""Finds the options with the least estimated time that fit: remat policy, kernel, rows per device.

For every kernel and number of rows the remat policies are compiled from the one that keeps most,
until one fits: those after it compute more. A policy that did not fit with fewer rows is not tried
with more. The rows of a kernel grow until a step takes longer. Policies that keep activations in
the host's memory are not searched: the estimate knows nothing of the way there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jpeglm_jax.compilation.report import attention_shape, compile_step, make_train_step
from jpeglm_jax.model.attention import AUTO, IMPLEMENTATIONS, choose
from jpeglm_jax.model.config import REMAT_POLICIES
from jpeglm_jax.parallel import sharding

POLICIES = tuple(name for name in REMAT_POLICIES if not name.startswith("offload"))


def search(
    config: ConfigDict,
    devices: Sequence[jax.Device],
    *,
    tried: Callable[[dict[str, Any]], None] = lambda report: None,
) -> list[dict[str, Any]]:
    """Compiles candidates for `devices`.

    Args:
      config: the run's; its batch is divided into as many parts as the rows per device ask for.
      devices: see `topologies.describe`.
      tried: called with the report of each candidate as soon as it is known.

    Returns:
      The reports of `compile_step` of all candidates, those that fit first, by estimated time.

    Raises:
      ValueError: no number of rows divides the batch; devices without rates or memory size.
    """
    reports = []
    for kernel in kernels(config, devices):
        start = 0  # the first policy that may fit
        least = float("inf")
        for rows in rows_per_device(config, devices):
            for number in range(start, len(POLICIES)):
                candidate = candidate_config(config, devices, rows, kernel, POLICIES[number])
                report = compile_step(candidate, devices)
                if report["fits"] is None or (report["fits"] and not report["estimated_seconds"]):
                    raise ValueError(
                        f"{report['device_kind']} has no memory or rates in chips.py; expected "
                        "a TPU or GPU of that table"
                    )
                report["rows_per_device"] = rows
                reports.append(report)
                tried(report)
                if report["fits"]:
                    start = number
                    break
            if not report["fits"] or report["estimated_seconds"]["total"] > least:
                break  # more rows need more memory, and leave less of it to keep activations in
            least = report["estimated_seconds"]["total"]
    return sorted(
        reports, key=lambda r: (not r["fits"], (r["estimated_seconds"] or {}).get("total"))
    )


def kernels(config: ConfigDict, devices: Sequence[jax.Device]) -> list[str]:
    """Attention kernels to try: the configured one, or for "auto" all that take the shape."""
    if config.model.attention != "auto":
        return [config.model.attention]
    device = devices[0]
    model = make_train_step(config, device.platform).model.config
    shape = attention_shape(model, config.seq_len, device.device_kind)
    able = []
    for name, platforms in IMPLEMENTATIONS.items():
        if device.platform in platforms and name not in ("xla", "chunked"):
            try:
                able.append(choose(name, device.platform, shape))
            except ValueError:
                assert name in AUTO or name == "tokamax"
    return able or [choose("auto", device.platform, shape)]


def rows_per_device(config: ConfigDict, devices: Sequence[jax.Device]) -> Iterator[int]:
    """1, 2, 4 ... rows that divide the batch. Raises ValueError if there are none."""
    mesh = sharding.make_mesh(
        {axis: config.mesh[axis] for axis in sharding.AXES},
        slices=config.mesh.slices,
        devices=devices,
    )
    parts = sharding.axis_size(mesh, "batch")
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size = {config.batch_size} is not a multiple of the {parts} parts that the "
            "mesh splits it into; change batch_size or the mesh"
        )
    rows = 1
    while config.batch_size % (rows * parts) == 0:
        yield rows
        rows *= 2


def candidate_config(
    config: ConfigDict, devices: Sequence[jax.Device], rows: int, kernel: str, remat: str
) -> ConfigDict:
    """The run with these options."""
    candidate = config.copy_and_resolve_references()
    mesh = sharding.mesh_shape({axis: config.mesh[axis] for axis in sharding.AXES}, len(devices))
    candidate.optimizer.grad_accum_steps = config.batch_size // (
        rows * mesh["replica"] * mesh["fsdp"]
    )
    candidate.model.update(attention=kernel, remat=remat)
    return candidate


def line(report: dict[str, Any]) -> str:
    """One candidate of the table."""
    need = f"{report['need_gib']:.2f}" if report["need_gib"] else "?"
    if report["fits"]:
        seconds = report["estimated_seconds"]["total"]
        tokens = report["batch_size"] * report["seq_len"] / report["devices"] / seconds
        time = f"{seconds:.2f} | {tokens:,.0f}"
    else:
        time = "does not fit |"
    return (
        f"| {report['rows_per_device']} | {report['grad_accum_steps']} | {report['attention']} | "
        f"{report['remat']} | {need} | {time} |"
    )


HEADER = (
    "| rows per device | parts | attention | remat | need GiB | estimated seconds per step | "
    "estimated tokens per second and device |\n|---|---|---|---|---|---|---|"
)


def best(reports: Sequence[dict[str, Any]]) -> str:
    """The flags of the candidate that fits with the least estimated time."""
    if not reports[0]["fits"]:
        return "no candidate fits; more devices, or a mesh that splits the model, need less"
    first = reports[0]
    return (
        f"least estimated time: --config.model.attention={first['attention']} "
        f"--config.model.remat={first['remat']} "
        f"--config.optimizer.grad_accum_steps={first['grad_accum_steps']}"
    )
