"""What differs from chip to chip: peak rates, memory, compiler options, sizes of kernels' blocks.

One table, used by training and by compiling ahead of time alike. Sources of the GPUs' rows: the
data sheets of A100, H100 and H200, whose rates with sparsity are halved here.
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
        and the sum; but what a block holds above the diagonal is wasted work.
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
      peak_flops: dense bfloat16 operations per second, as the vendor states them.
      hbm_gib: memory, GiB; None where it is not known.
      clock_hz: cycles per second of a TPU's core: the peak over the operations of its matrix units
        in a cycle. None for a GPU, whose compiler gives no cycles.
      link_bytes: bytes per second into a chip over all its links to other chips of its pod (ICI) or
        its machine (NVLink), as the vendor states them.
      network_bytes: bytes per second into a GPU from other machines: one 400 Gb/s adapter per GPU,
        as in the vendor's reference machines.
      compute_capability: of a GPU: 9.0 is the Hopper generation.
      options: given to the compiler with every program. A GPU's boolean options are bools: its
        compiler rejects the strings that a TPU's takes.
      splash: block sizes of the TPU attention kernel.
    """

    peak_flops: float
    hbm_gib: float | None = None
    clock_hz: float | None = None
    link_bytes: float | None = None
    network_bytes: float | None = None
    compute_capability: float | None = None
    options: dict[str, str | bool | int] = dataclasses.field(default_factory=dict)
    splash: SplashBlocks = SplashBlocks()

    @property
    def usable_gib(self) -> float | None:
        """Memory that a program can have: of a GPU's, the share that JAX is given."""
        if self.hbm_gib is None or self.compute_capability is None:
            return self.hbm_gib
        return self.hbm_gib * MEMORY_FRACTION


# XLA_PYTHON_CLIENT_MEM_FRACTION of the launchers and the benchmarks: the share of a GPU's memory
# that JAX reserves (its default is 0.75). The rest is for NCCL's buffers and CUDA's own.
MEMORY_FRACTION = 0.92

# Weights are gathered while the layer before computes. The default on v5e, an option elsewhere.
ASYNC_GATHERS: dict[str, str | bool | int] = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}

# Collectives start as early and end as late as the data allows, with computation between.
LATENCY_HIDING: dict[str, str | bool | int] = {"xla_gpu_enable_latency_hiding_scheduler": True}


def _gpu(peak: float, gib: float, capability: float, link: float, network: float) -> Chip:
    return Chip(
        peak,
        gib,
        link_bytes=link,
        network_bytes=network,
        compute_capability=capability,
        options=LATENCY_HIDING,
    )


# By the start of `device_kind`; the longest that fits counts. The cards of one name differ: an H100
# PCIe has three quarters of the SXM module's rate.
CHIPS = {
    "NVIDIA A100-SXM4-40GB": _gpu(312e12, 39.4, 8.0, 300e9, 25e9),
    "NVIDIA A100-SXM4-80GB": _gpu(312e12, 79.3, 8.0, 300e9, 25e9),
    "NVIDIA A100 80GB PCIe": _gpu(312e12, 79.3, 8.0, 32e9, 25e9),
    "NVIDIA A100-PCIE-40GB": _gpu(312e12, 39.4, 8.0, 32e9, 25e9),
    "NVIDIA H100 80GB HBM3": _gpu(989e12, 79.1, 9.0, 450e9, 50e9),
    "NVIDIA H100 PCIe": _gpu(756e12, 79.2, 9.0, 64e9, 50e9),
    "NVIDIA H100 NVL": _gpu(835e12, 93.1, 9.0, 64e9, 50e9),
    "NVIDIA H200": _gpu(989e12, 140.4, 9.0, 450e9, 50e9),
    "NVIDIA H200 NVL": _gpu(835e12, 140.4, 9.0, 64e9, 50e9),
    "TPU v4": Chip(275e12, 32, 1.05e9, 300e9),
    "TPU v5 lite": Chip(
        197e12, 16, 1.5e9, 200e9, options={"xla_tpu_scoped_vmem_limit_kib": "40960"}
    ),
    "TPU v5": Chip(
        459e12,
        95,
        1.75e9,
        600e9,
        options=ASYNC_GATHERS | {"xla_tpu_scoped_vmem_limit_kib": "40960"},
    ),
    "TPU v6 lite": Chip(
        918e12,
        32,
        1.75e9,
        448e9,
        options=ASYNC_GATHERS | {"xla_tpu_scoped_vmem_limit_kib": "98304"},
        splash=SplashBlocks(q=1024, kv=2048, kv_compute=1024),
    ),
}
# What a topology calls a device is not always what the device calls itself.
CHIPS |= {
    f"TPU {short}": CHIPS[kind]
    for short, kind in (("v5e", "TPU v5 lite"), ("v5p", "TPU v5"), ("v6e", "TPU v6 lite"))
}


def chip(device_kind: str) -> Chip | None:
    """The entry of a device; None for one that is not in the table.

    A slice of a GPU ("... MIG 1g.10gb") is none of the table: it has a part of the card's rates.
    """
    kinds = [kind for kind in CHIPS if device_kind.startswith(kind)]
    return CHIPS[max(kinds, key=len)] if kinds and " MIG" not in device_kind else None


def target() -> tuple[str, str]:
    """Platform and kind of the device that is computed for: the current mesh's, else the default.

    Inside `jax.set_mesh` of a mesh that was described, not found, it is the described device.
    """
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        return described.platform, described.device_kind
    device = jax.devices()[0]
    return device.platform, device.device_kind


def compute_capability(device_kind: str) -> float:
    """Of a GPU, 9.0 for example: from the table, else asked of this machine's; 0.0 if unknown."""
    known = chip(device_kind)
    if known and known.compute_capability:
        return known.compute_capability
    for device in jax.devices():
        if device.device_kind == device_kind:
            return float(getattr(device, "compute_capability", 0.0))
    return 0.0
