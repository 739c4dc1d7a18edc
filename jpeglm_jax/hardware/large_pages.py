"""Memory in large pages, which a step on a CPU needs to be fast."""

from __future__ import annotations

import os
import platform
import sys

# Of the GNU C library, 2.35 and newer; older ones pass it over. See mallopt(3) and the manual's
# "Memory Allocation Tunables".
_TUNABLE = "glibc.malloc.hugetlb"


def restart_with_large_pages() -> None:
    """Starts the running command again, once, with memory that comes in large pages.

    XLA allocates the memory of every step again, and Linux clears it page by page: 4 KiB at
    a time, that was a quarter of the time of a step on two cores; 2 MiB at a time, almost nothing.
    The C library reads the setting when a process starts and at no other time. Nothing happens
    where it is set already, whatever its value, or where there is no such library.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or _TUNABLE in tunables:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
