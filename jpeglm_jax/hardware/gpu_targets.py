"""GPUs, described to XLA's compiler from any machine, as `topologies` asks for them.

XLA reads a `GpuTargetConfigProto` in text form. What it takes from it: the limits of a block of
threads and of its registers and memory, the number of cores, and the rates by which it chooses
tiles. The limits are those of compute capability 9.0 in the CUDA programming guide.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU of the Hopper generation.

    Attributes:
      device_kind: as the driver calls it, and as chips.py lists it.
      memory_bytes: as the driver reports them.
      memory_bandwidth: bytes per second.
    """

    device_kind: str
    memory_bytes: int
    memory_bandwidth: int

    def text(self) -> str:
        """The description that XLA reads."""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: 132
  fpus_per_core: 128
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: {self.memory_bandwidth}
  device_memory_size: {self.memory_bytes}
  pcie_bandwidth: 64000000000
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  device_address_bits: 64
  ecc_enabled: true
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  name: "{self.device_kind}"
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
  device_interconnect_info {{ active_links: 18 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{self.device_kind}"
"""


# The SXM modules, of eight to a machine.
TARGETS = {
    "h100": Target("NVIDIA H100 80GB HBM3", 84_942_979_072, 3_350_000_000_000),
    "h200": Target("NVIDIA H200", 150_754_820_096, 4_800_000_000_000),
}
