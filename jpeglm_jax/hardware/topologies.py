"""Pods and GPU machines, described from any machine: what a compiler must know of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os

import jax
from jax.experimental import topologies

from jpeglm_jax.hardware.gpu_targets import TARGETS


class TopologyError(ValueError):
    """A description of devices that cannot be compiled for."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPU pods.

    Attributes:
      compiler_name: what the compiler calls it.
      chip_config: "megacore" joins the two cores of a chip to one device.
      dims: of the network between chips.
      ring: chips along a dimension from which on, and in multiples of which, it closes to a ring.
    """

    compiler_name: str
    chip_config: str
    dims: int
    ring: int


GENERATIONS = {
    "v5e": Generation("v5e", "default", 2, 16),
    "v5p": Generation("v5", "megacore", 3, 4),
    "v6e": Generation("v6e", "default", 2, 16),
}
EXPECTED = "expected such as v5p:4x4x4, v5e:16x16, v6e:16x16, h100:8, h200:4x8 or cpu:8"
GPUS_PER_MACHINE = 8


def describe(topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of a topology, to compile for; none of them need exist.

    A pod is described in full, with its hosts and the ends of its network that are joined: a
    compiler that does not know the rings gathers weights by slower means.

    Args:
      topology: GENERATION:CHIPS, such as "v5p:4x4x4"; GPU:DEVICES or GPU:MACHINESxDEVICES, such as
        "h100:8" or "h100:4x8"; or "cpu:8", this machine's CPU as 8 devices.
      slices: how many such TPU pods, joined by the data-centre network.

    Raises:
      TopologyError: a description that is not understood, or no compiler for it here.
    """
    name, _, extent = topology.partition(":")
    if not extent or not all(n.isdigit() and int(n) > 0 for n in extent.split("x")):
        raise TopologyError(f"topology is {topology!r}; {EXPECTED}")
    chips = [int(n) for n in extent.split("x")]
    if name == "cpu":
        return _cpu(math.prod(chips))
    if name in TARGETS:
        return _gpu(topology, chips)
    if name not in GENERATIONS:
        raise TopologyError(
            f"topology is {topology!r}; there is no description of {name!r} here; {EXPECTED}"
        )
    generation = GENERATIONS[name]
    if len(chips) != generation.dims:
        raise TopologyError(
            f"topology is {topology!r}; {name} has {generation.dims} dimensions; {EXPECTED}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            f"compiling for {topology} needs the TPU compiler, on any machine: "
            f"pip install 'jax[tpu]=={jax.__version__}'"
        )
    # The compiler would ask the metadata server of a TPU machine what it runs on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{name}-{math.prod(chips)}")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    rings = [n >= generation.ring and n % generation.ring == 0 for n in chips]
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{generation.compiler_name}:{extent}",
            chip_config_name=generation.chip_config,
            chips_per_host_bounds=(2, 2, 1),
            wrap=(*rings, *[False] * (3 - len(rings))),
            num_slices=slices,
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TopologyError(
            f"the TPU compiler rejects the topology {topology}: {reason}"
        ) from error
    return list(found.devices)


def _gpu(topology: str, counts: list[int]) -> list[jax.Device]:
    """GPUs of machines with NVLink within each and a network between them."""
    machines, devices = counts if len(counts) == 2 else (1, counts[-1])
    if len(counts) > 2 or devices > GPUS_PER_MACHINE:
        raise TopologyError(
            f"topology is {topology!r}; a machine has up to {GPUS_PER_MACHINE} GPUs, several are "
            f"written MACHINESx{GPUS_PER_MACHINE}; {EXPECTED}"
        )
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise TopologyError(
            f"compiling for {topology} needs XLA's compiler for CUDA, on any machine, with or "
            f"without a GPU: pip install 'jax[cuda13]=={jax.__version__}'"
        )
    found = topologies.get_topology_desc(
        platform="cuda",
        target_config=TARGETS[topology.partition(":")[0]].text(),
        topology=f"1x{machines}x{devices}",
    )
    return list(found.devices)


def _cpu(count: int) -> list[jax.Device]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise TopologyError(
            f"topology is cpu:{count}, but this process has split its CPU into {len(devices)}"
        )
    return devices[:count]
