"""The mesh, and the one table from logical axes of arrays to axes of the mesh.

The model, training and generation name the logical axes of their arrays; only RULES maps them.

The mesh has four axes, from the slowest links to the fastest:

  replica   copies of the whole state, gradients summed between them; spans the slices of a
            multi-slice job, so that only this sum crosses the data-centre network (DCN)
  fsdp      splits the batch, the weights (gathered when used) and the optimiser moments
  sequence  splits sequences along the tokens, and in attention along the heads instead
  tensor    splits heads and feed-forward columns
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines.utils.cpus import num_cpus

AXES = ("replica", "fsdp", "sequence", "tensor")

# The arrays of a batch, each [batch size, sequence length], and their logical axes.
Batch = dict[str, jax.Array]
BATCH_AXES = ("batch", "length")
BATCH_KEYS = ("tokens", "targets", "segments", "positions", "weights", "codec_bytes")

# Logical axis -> mesh axes. This table is the only place that defines a parallelism strategy.
RULES: dict[str, str | tuple[str, ...] | None] = {
    # Activations.
    "batch": ("replica", "fsdp"),
    "length": "sequence",
    "act_embed": None,
    # Attention splits heads, not sequences (Jacobs et al. 2023, "DeepSpeed Ulysses"): of the parts
    # of a sequence the last would have the most work, because attention is causal.
    "act_heads": ("tensor", "sequence"),
    "act_ffn": "tensor",
    # Weights. "embed" is the width of the residual stream, a dimension of every matrix.
    "layers": None,
    "vocab": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "ffn": "tensor",
    "norm": None,
}


class MeshError(ValueError):
    """A mesh that does not fit the devices or the sizes of the run."""


def mesh_shape(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """Resolves the configured axis sizes, of which one may be -1 (the remaining devices).

    Raises MeshError, naming the axis, if the product is not the number of devices.
    """
    unknown = set(sizes) - set(AXES)
    if unknown:
        raise MeshError(f"mesh: unknown axes {sorted(unknown)}; the axes are {', '.join(AXES)}")
    shape = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    for axis, size in shape.items():
        if size < 1 and size != -1:
            raise MeshError(f"mesh.{axis} is {size}; expected a positive size, or -1 for the rest")
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise MeshError(f"mesh: only one axis may be -1, found {' and '.join(free)}")
    fixed = math.prod(size for size in shape.values() if size != -1)
    if free:
        if devices % fixed:
            raise MeshError(
                f"mesh.{free[0]} is -1, but the other axes take {fixed} devices, which does not "
                f"divide the number of devices, {devices}"
            )
        shape[free[0]] = devices // fixed
    elif fixed != devices:
        spelled = " x ".join(f"{axis} {size}" for axis, size in shape.items())
        raise MeshError(
            f"mesh: {spelled} needs {fixed} devices, found {devices}; set one axis to -1 to take "
            "the remaining devices"
        )
    return shape


def make_mesh(
    sizes: Mapping[str, int], *, slices: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Builds the mesh, with devices ordered so that neighbours on an axis have a direct link.

    Args:
      sizes: axis -> size; missing axes are 1, one may be -1.
      slices: number of slices joined by the data-centre network; divides the replica axis.
      devices: defaults to all devices of all processes.

    Raises:
      MeshError: the sizes do not fit the devices or the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(sizes, len(devices))
    dims = tuple(shape[axis] for axis in AXES)
    if shape["replica"] % slices:
        raise MeshError(
            f"mesh.replica is {shape['replica']}, which {slices} slices do not divide; "
            "only the replica axis spans slices"
        )
    if devices[0].platform == "cpu":
        grid = np.asarray(devices).reshape(dims)  # simulated devices have no topology
    elif slices > 1:
        inner = (dims[0] // slices, *dims[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1, 1), devices=devices, allow_split_physical_axes=True
        )
    else:
        # An axis may split a physical axis, such as 2 of a ring of 16.
        grid = mesh_utils.create_device_mesh(dims, devices=devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def inference_mesh(weight_bytes: int, divisible: Sequence[int]) -> Mesh:
    """A mesh of this process's devices for inference.

    Every device holds the whole model, which is fastest, unless that takes more than half of its
    memory. Then heads and columns are split over as few devices as possible.

    Args:
      weight_bytes: size of the whole model.
      divisible: sizes that the number of parts must divide.
    """
    devices = jax.local_devices()
    memory = (devices[0].memory_stats() or {}).get("bytes_limit", math.inf)
    tensor = 1
    while weight_bytes / tensor > memory / 2 and len(devices) % (2 * tensor) == 0:
        if any(size % (2 * tensor) for size in divisible):
            break
        tensor *= 2
    return make_mesh({"replica": -1, "tensor": tensor}, devices=devices)


def split_cpu(devices: int) -> None:
    """Splits the CPU into several JAX devices; call it before anything else of JAX.

    One device per core, with a part of the batch each, is faster than one device of many threads:
    operations too small for several threads then still run on all cores. Without effect if
    XLA_FLAGS already sets the number.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)


def cpu_devices(config: ConfigDict) -> int:
    """Number of devices to split a CPU into: as configured, else cores that divide a batch."""
    if config.cpu_devices:
        return config.cpu_devices
    sizes = [config.mesh[axis] for axis in AXES]
    if -1 not in sizes:
        return math.prod(sizes)
    part = config.batch_size // config.optimizer.get("grad_accum_steps", 1)
    return max(n for n in range(1, num_cpus() + 1) if part % n == 0)


def spec(*logical: str | None) -> PartitionSpec:
    """Logical axis names, one per dimension (None: not split) -> a spec in mesh axes."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in logical))


def named(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """The sharding of an array with these logical axes on `mesh`."""
    return NamedSharding(mesh, spec(*logical))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Constrains the sharding of an activation in a jitted function on a mesh; else returns it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*logical))


def on_each_device(
    function: Callable[..., Any], *, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`function` run by every device of the current mesh on its own part of the arrays.

    For kernels, which run on one device. Without a mesh, or on one device, `function` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def axis_size(mesh: Mesh, logical: str) -> int:
    """Number of parts that a logical axis is split into."""
    return math.prod(mesh.shape[name] for name in _mesh_axes(logical))


def _mesh_axes(logical: str) -> tuple[str, ...]:
    axes = RULES[logical]
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def check_divides(mesh: Mesh, sizes: Mapping[str, tuple[str, int]]) -> None:
    """Checks that the mesh divides the sizes of a run, before anything is allocated.

    Args:
      sizes: name of the setting -> (logical axis, size), e.g. `{"model.heads": ("act_heads", 32)}`.

    Raises:
      MeshError: naming every setting that it does not divide.
    """
    wrong = []
    for name, (logical, size) in sizes.items():
        parts = axis_size(mesh, logical)
        if size % parts:
            over = " x ".join(f"mesh.{axis}" for axis in _mesh_axes(logical))
            wrong.append(f"{name} = {size} is split {parts} ways, {over}, which must divide it")
    if wrong:
        raise MeshError("the mesh does not divide the run: " + "; ".join(wrong))


def shardings_of(mesh: Mesh, axes: Any) -> Any:
    """A tree of logical axes (tuples of names) -> the same tree of shardings."""
    return jax.tree.map(lambda a: named(mesh, *a), axes, is_leaf=lambda a: isinstance(a, tuple))


def batch_shardings(mesh: Mesh) -> dict[str, Any]:
    """The sharding of each array of a batch."""
    return dict.fromkeys(BATCH_KEYS, named(mesh, *BATCH_AXES))
