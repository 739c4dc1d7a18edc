"""What a pass costs: time on the clock, and of all cores together."""

from __future__ import annotations

import resource
import statistics
import time
from typing import NamedTuple


class Cost(NamedTuple):
    """Of a pass: seconds on the clock, and of all cores together."""

    seconds: float
    cpu_seconds: float


def overhead(bare: list[Cost], prepared: list[Cost], kind: str) -> float:
    """What preparation takes more, as a part of the bare work; the median of the passes."""
    ratios = [getattr(p, kind) / getattr(b, kind) for p, b in zip(prepared, bare, strict=True)]
    return statistics.median(ratios) - 1


def now() -> Cost:
    """Worker processes count once they have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Cost(time.perf_counter(), sum(use.ru_utime + use.ru_stime for use in usage))


def since(start: Cost) -> Cost:
    return Cost(*(after - before for after, before in zip(now(), start, strict=True)))
