"""Wall-clock and CPU time of a benchmark pass."""

from __future__ import annotations

import resource
import statistics
import time
from typing import NamedTuple


class Cost(NamedTuple):
    """Time of a pass in seconds: wall-clock time, and CPU time of all cores together."""

    seconds: float
    cpu_seconds: float


def overhead(bare: list[Cost], prepared: list[Cost], kind: str) -> float:
    """Extra time of preparation as a fraction of the bare work: the median over passes."""
    ratios = [getattr(p, kind) / getattr(b, kind) for p, b in zip(prepared, bare, strict=True)]
    return statistics.median(ratios) - 1


def now() -> Cost:
    """The current times; CPU time includes worker processes after they have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Cost(time.perf_counter(), sum(use.ru_utime + use.ru_stime for use in usage))


def since(start: Cost) -> Cost:
    """The time from `start` to now."""
    return Cost(*(after - before for after, before in zip(now(), start, strict=True)))
