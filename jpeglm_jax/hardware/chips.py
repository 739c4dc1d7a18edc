"""What differs from chip to chip: peak rates, memory, compiler options, sizes of kernels' blocks.

One table, used by training and by compiling ahead of time alike.
"""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class SplashBlocks:
    """Rows of queries and of keys that the TPU kernel holds at a time.

    Attributes:
      q, kv: forwards; kv_compute: the part of kv that is computed at once.
      q_dkv, kv_dkv, kv_dkv_compute: the same backwards. The fused backward kernel writes the
        queries' gradient once for every kv_dkv keys, to be summed, so small blocks cost memory
        and the sum; but what a block holds above the diagonal is computed in vain.
    """

    q: int = 512
    kv: int = 1024
    kv_compute: int = 512
    q_dkv: int = 1024
    kv_dkv: int = 2048
    kv_dkv_compute: int = 512


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device.

    Attributes:
      peak_flops: dense bfloat16 operations a second, as the vendor states them.
      hbm_gib: memory, GiB; None where it is not known.
      clock_hz: cycles a second of a TPU's core: the peak over the operations of its matrix units
        in a cycle.
      link_bytes: bytes a second into a TPU chip over all its links to other chips (ICI), as the
        vendor states them.
      options: given to the compiler with every program.
      splash: block sizes of the TPU attention kernel.
    """

    peak_flops: float
    hbm_gib: float | None = None
    clock_hz: float | None = None
    link_bytes: float | None = None
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    splash: SplashBlocks = SplashBlocks()


# Weights are gathered while the layer before computes. Default on v5e, to be asked for elsewhere.
ASYNC_GATHERS = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}

# By the start of `device_kind`; the longest that fits counts.
CHIPS = {
    "NVIDIA A100": Chip(312e12),
    "NVIDIA H100": Chip(989e12),
    "NVIDIA H200": Chip(989e12),
    "TPU v4": Chip(275e12, 32, 1.05e9, 300e9),
    "TPU v5 lite": Chip(197e12, 16, 1.5e9, 200e9, {"xla_tpu_scoped_vmem_limit_kib": "40960"}),
    "TPU v5": Chip(
        459e12, 95, 1.75e9, 600e9, ASYNC_GATHERS | {"xla_tpu_scoped_vmem_limit_kib": "40960"}
    ),
    "TPU v6 lite": Chip(
        918e12,
        32,
        1.75e9,
        448e9,
        ASYNC_GATHERS | {"xla_tpu_scoped_vmem_limit_kib": "98304"},
        SplashBlocks(q=1024, kv=2048, kv_compute=1024),
    ),
}
# What a topology calls a device is not always what the device calls itself.
CHIPS |= {
    f"TPU {short}": CHIPS[kind]
    for short, kind in (("v5e", "TPU v5 lite"), ("v5p", "TPU v5"), ("v6e", "TPU v6 lite"))
}


def chip(device_kind: str) -> Chip | None:
    """The entry of a device; None for one that is not in the table."""
    kinds = [kind for kind in CHIPS if device_kind.startswith(kind)]
    return CHIPS[max(kinds, key=len)] if kinds else None


def target() -> tuple[str, str]:
    """Platform and kind of the device that is computed for: the current mesh's, else the default.

    Inside `jax.set_mesh` of a mesh that was described, not found, it is the described device.
    """
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        return described.platform, described.device_kind
    device = jax.devices()[0]
    return device.platform, device.device_kind
