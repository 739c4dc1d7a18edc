"""Memory in large pages that is kept, which makes a train step on a CPU faster."""

from __future__ import annotations

import glob
import os
import platform
import sys

# Of the GNU C library, 2.35 and newer; older ones ignore it. See mallopt(3) and the manual's
# "Memory Allocation Tunables".
_TUNABLE = "glibc.malloc.hugetlb"
# What is freed stays with the process: one arena, no mappings of their own, nothing given back.
_KEPT = (
    "glibc.malloc.arena_max=1",
    "glibc.malloc.mmap_max=0",
    f"glibc.malloc.trim_threshold={1 << 40}",
)
# Of GPUs and TPUs. Their hosts allocate little in a step, and much beside it.
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*")


def restart_with_large_pages() -> None:
    """Restarts the running command once, with memory in large pages, and on a CPU with it kept.

    XLA allocates the memory of a step again at every step, and Linux clears it page by page. With
    pages of 4 KiB that took a quarter of a step on two cores; with 2 MiB it takes a tenth, and a
    quarter where attention's arrays are large; with memory that is kept, nothing. The C library
    reads the settings only when a process starts. Nothing happens where large pages have a setting
    already, or where there is no such library.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or _TUNABLE in tunables:
        return
    on_cpu = not any(glob.glob(pattern) for pattern in _ACCELERATORS)
    added = [f"{_TUNABLE}=1", *(_KEPT if on_cpu else ())]
    known = {each.partition("=")[0] for each in tunables.split(":")}
    added = [each for each in added if each.partition("=")[0] not in known]
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, *added]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
