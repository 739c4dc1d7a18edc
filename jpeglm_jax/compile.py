"""Example: python -m jpeglm_jax.compile --config=configs/jpeg.py:7b_v5p128 --topology=v5p:4x4x4

Compiles the very step that trains, for a TPU pod or GPU machines that need not exist, and reports
what it needs: memory per device, collectives, operations, an estimate of its time. With --search it
finds the remat policy, attention kernel and rows per device with the least estimated time that
fit. The numbers go to a file with --json=FILE. A compiler is needed, on any machine:
pip install 'jax[tpu]' for TPUs, 'jax[cuda13]' for GPUs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from data_pipelines.utils import command
from jpeglm_jax.compilation import search
from jpeglm_jax.compilation.report import compile_step, text
from jpeglm_jax.hardware import topologies
from jpeglm_jax.parallel import sharding


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    values = flags.FLAGS
    config, topology = values.config, values.topology
    jax.config.update("jax_platforms", "cpu")  # an accelerator that is here is not touched
    name, _, count = topology.partition(":")
    if name == "cpu" and count.isdigit():
        sharding.split_cpu(int(count))
    devices = topologies.describe(topology, config.mesh.slices)
    if values.search:
        print(search.HEADER, flush=True)
        found = search.search(
            config,
            devices,
            tried=lambda report: print(search.line(report), flush=True),
        )
        print(search.best(found))
        result: object = [{"topology": topology} | report for report in found]
    else:
        result = {"topology": topology} | compile_step(config, devices, registers=True)
        print(text(result))
    if values.json:
        epath.Path(values.json).write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to compile: FILE[:PRESET].")
    flags.DEFINE_string(
        "topology", None, "For what: v5p:4x4x4, v5e:16x16, v6e:16x16, h100:8, h200:4x8, cpu:8."
    )
    flags.mark_flags_as_required(["config", "topology"])
    flags.DEFINE_bool("search", False, "Find the remat policy, kernel and rows per device.")
    flags.DEFINE_string("json", None, "Where to write the numbers.")


if __name__ == "__main__":
    _define_flags()
    command.run(main)
