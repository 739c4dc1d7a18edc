"""What a compiled program says about itself: estimated cycles and collectives, from its text.

The text of a scheduled TPU program gives, with most operations, the cycles that the compiler
expects. They cover XLA's fusions and convolutions; kernels (attention) and collectives carry none.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
KEYS = ("count", "runs", "asynchronous", "bytes", "bytes_beside")
_BITS = {"pred": 8, "bf16": 16, "token": 0}  # others end in their number of bits
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a program: what it gives, what it does, and the rest of the line."""

    result: str
    kind: str
    rest: str

    def named(self, attribute: str) -> list[str]:
        """The computations that an attribute names: `body=%region` or `calls={%a, %b}`."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest)
        return re.findall(r"[\w.\-]+", found.group(1)) if found else []

    def number(self, key: str) -> int:
        """A number of the backend's configuration; 0 where there is none."""
        found = re.search(rf'"{key}":"?(\d+)', self.rest)
        return int(found.group(1)) if found else 0


class Program:
    """The text of a compiled, scheduled program (`compiled.as_text()`)."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Operation]] = {}
        self.entry = ""
        current: list[Operation] = []
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                current = self.computations.setdefault(head.group(2), [])
                if head.group(1):
                    self.entry = head.group(2)
            elif operation := _OPERATION.match(line):
                current.append(Operation(*operation.groups()))
        if not self.entry:
            raise ValueError("this is not the text of a compiled program: it has no ENTRY")

    def runs(self) -> Counter[str]:
        """How often each computation of the schedule runs: loop bodies times their trip counts."""
        times: Counter[str] = Counter()

        def visit(name: str, count: int) -> None:
            times[name] += count
            for operation in self.computations[name]:
                if operation.kind == "while":
                    visit(operation.named("body")[0], count * self._trips(operation))
                elif operation.kind == "call":
                    visit(operation.named("to_apply")[0], count)
                elif operation.kind == "conditional":
                    for branch in operation.named("branch_computations"):
                        visit(branch, count)

        visit(self.entry, 1)
        return times

    def _trips(self, loop: Operation) -> int:
        """How often a loop runs: as said with it, else the bound that its counter is held to.

        Raises ValueError if neither tells.
        """
        if said := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(said.group(1))
        condition = self.computations[loop.named("condition")[0]]
        bounds = [
            o.rest
            for o in condition
            if o.kind == "constant" and o.result.startswith(("s32[]", "u32[]"))
        ]
        below = any(o.kind == "compare" and "direction=LT" in o.rest for o in condition)
        if len(bounds) != 1 or not below:
            raise ValueError("a loop of the program does not say how often it runs")
        return int(bounds[0].split(")")[0])

    def cycles(self) -> int:
        """Estimated cycles of one run: those of all scheduled operations, loops in full."""
        return sum(
            count * operation.number("estimated_cycles")
            for name, count in self.runs().items()
            for operation in self.computations[name]
        )

    def collectives(self) -> dict[str, dict[str, int]]:
        """Collectives of one run by kind.

        A collective that runs beside computation is spread over several fusions; its channel
        tells that they are one.

        Returns:
          kind -> count (in the text), runs (loops in full), asynchronous (how many of count run
          beside computation), bytes (runs times the bytes each device ends up with), bytes_beside
          (those of the asynchronous ones).
        """
        channels: dict[tuple[str, str], tuple[int, int, bool]] = {}
        for name, count in self.runs().items():
            for operation, overlapped in self._with_fused(name):
                kind = operation.kind.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                channel = re.search(r"channel_id=(\d+)", operation.rest)
                key = kind, channel.group(1) if channel else f"{name} {operation.result}"
                overlapped = overlapped or operation.kind.endswith("-start")
                size, runs, before = channels.get(key, (0, 0, False))
                size = max(size, num_bytes(operation.result))
                channels[key] = size, max(runs, count), before or overlapped
        kinds: dict[str, dict[str, int]] = {}
        for (kind, _), (size, runs, overlapped) in channels.items():
            of_kind = kinds.setdefault(kind, dict.fromkeys(KEYS, 0))
            of_kind["count"] += 1
            of_kind["runs"] += runs
            of_kind["asynchronous"] += overlapped
            of_kind["bytes"] += runs * size
            of_kind["bytes_beside"] += runs * size * overlapped
        return kinds

    def _with_fused(self, name: str) -> list[tuple[Operation, bool]]:
        """Operations of a computation and, marked, of the fusions and asynchronous calls in it."""
        found = []
        for operation in self.computations[name]:
            found.append((operation, False))
            if operation.kind in ("fusion", "async-start"):
                for called in operation.named("calls"):
                    found += [(inner, True) for inner, _ in self._with_fused(called)]
        return found


def num_bytes(shape: str) -> int:
    """Bytes of an array or tuple as a program writes its shape."""
    total = 0
    for kind, dims in _SHAPE.findall(shape.split(" ")[0] if shape[0] != "(" else shape):
        digits = re.match(r"[a-z]+(\d+)", kind)
        bits = _BITS.get(kind, int(digits.group(1)) if digits else 0)
        total += math.prod(int(n) for n in dims.split(",") if n) * bits // 8
    return total
