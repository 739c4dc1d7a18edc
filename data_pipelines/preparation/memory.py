"""Counts the processes that the kernel killed because memory ran out."""

from __future__ import annotations

import contextlib
import pathlib

# One line "oom_kill N" among others: of this control group (a container), and of the machine.
_COUNTERS = (pathlib.Path("/sys/fs/cgroup/memory.events"), pathlib.Path("/proc/vmstat"))


def out_of_memory_kills() -> int:
    """Processes killed for lack of memory since the machine started; 0 if nothing counts them."""
    total = 0
    for path in _COUNTERS:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                total += int(value) if name == "oom_kill" else 0
    return total
