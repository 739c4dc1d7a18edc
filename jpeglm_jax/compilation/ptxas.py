"""Registers and spills of a program's attention kernels, as NVIDIA's assembler counts them.

XLA writes the PTX of every kernel; `ptxas` of the CUDA compiler assembles it again and reports.
cuDNN's kernels are the library's own and cannot be seen.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

# Names of attention kernels: JAX's Pallas kernel and tokamax's.
_NAMES = re.compile(r"\.entry (\w*(?:mha|attention|mosaic)\w*)\(")


def find() -> str:
    """The path of `ptxas`: of the pip package nvidia-cuda-nvcc, else of the machine; "" if none."""
    try:
        found = importlib.util.find_spec("nvidia.cu13")
    except ModuleNotFoundError:
        found = None
    for folder in (found and found.submodule_search_locations) or ():
        if (path := Path(folder) / "bin" / "ptxas").exists():
            return str(path)
    return shutil.which("ptxas") or ""


def registers(folder: str) -> list[dict[str, Any]] | None:
    """Reads the PTX files that XLA wrote to `folder`.

    Returns:
      kernel, registers (per thread) and spilled_bytes (per thread, stores) of each attention
      kernel, by name; None where `ptxas` is not installed.
    """
    ptxas = find()
    if not ptxas:
        return None
    kernels: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob("*.ptx")):
        if not (name := _NAMES.search(path.read_text())):
            continue
        command = [ptxas, "-v", "--gpu-name=sm_90a", "-o", "/dev/null", str(path)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        kernels[name.group(1)] = parse(name.group(1), printed)
    return [kernels[name] for name in sorted(kernels)]


def parse(kernel: str, printed: str) -> dict[str, Any]:
    """One kernel's entry from what `ptxas -v` printed."""
    used = re.search(r"Used (\d+) registers", printed)
    spilled = re.search(r"(\d+) bytes spill stores", printed)
    if not used or not spilled:
        raise ValueError(f"ptxas reported no registers of {kernel}; it printed {printed[:300]!r}")
    return dict(kernel=kernel, registers=int(used.group(1)), spilled_bytes=int(spilled.group(1)))
