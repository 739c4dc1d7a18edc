"""Reads the text of a compiled program: cycles, products, kernels and collectives, loops in full.

The text of a scheduled TPU program gives, with most operations, the cycles that the compiler
expects. They cover XLA's fusions and convolutions; kernels (attention) and collectives carry none.
The text of a GPU program gives no cycles: its products are counted in operations instead.
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
KEYS = ("count", "runs", "concurrent", "bytes", "bytes_concurrent")
_BITS = {"pred": 8, "bf16": 16, "token": 0}  # others end in their number of bits
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
# Custom calls that are XLA's own products, and those that are attention kernels.
_PRODUCTS = ("__cublas$", "__cudnn$conv")
_KERNELS = ("__cudnn$fmha", "__gpu$xla.gpu.triton", "mosaic_gpu", "tpu_custom_call")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a program: its name, the shape it gives, what it does, the rest of the line."""

    name: str
    result: str
    kind: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of what it is computed from."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])

    @property
    def target(self) -> str:
        """Of a custom call: what it calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found.group(1) if found else ""

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
        self.for_gpu = '"operation_queue_id"' in text
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
        """How often a loop runs: as written with it, else the bound that its counter is held to.

        Raises ValueError if there is neither.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known.group(1))
        condition = self.computations[loop.named("condition")[0]]
        bounds = [
            o.rest
            for o in condition
            if o.kind == "constant" and o.result.startswith(("s32[]", "u32[]"))
        ]
        below = any(o.kind == "compare" and "direction=LT" in o.rest for o in condition)
        if len(bounds) != 1 or not below:
            raise ValueError("a loop of the program does not state how often it runs")
        return int(bounds[0].split(")")[0])

    def cycles(self) -> int:
        """Estimated cycles of one run: those of all scheduled operations, loops in full."""
        return sum(
            count * operation.number("estimated_cycles")
            for name, count in self.runs().items()
            for operation in self.computations[name]
        )

    def product_flops(self) -> int:
        """Operations of all matrix products of one run, two for each pair that is multiplied."""
        return sum(
            count * self._flops(name, operation)
            for name, count in self.runs().items()
            for operation in self.computations[name]
        )

    def _flops(self, name: str, operation: Operation) -> int:
        """Operations of the products in one scheduled operation."""
        if operation.kind == "fusion":
            return sum(
                self._flops(called, inner)
                for called in operation.named("calls")
                for inner in self.computations[called]
            )
        is_call = operation.kind == "custom-call" and operation.target.startswith(_PRODUCTS)
        if operation.kind != "dot" and not is_call:
            return 0
        lhs = next(o.result for o in self.computations[name] if o.name == operation.operands[0])
        # A dot has lhs_contracting_dims={1}, a library's call "lhs_contracting_dimensions":["1"].
        found = re.search(r"lhs_contracting_dim(?:s|ensions\")[=:]([{\[][^}\]]*)", operation.rest)
        if not found:
            raise ValueError(f"the product {operation.name} does not name what it sums over")
        sizes = _dims(lhs)
        contracted = math.prod(sizes[int(n)] for n in re.findall(r"\d+", found.group(1)))
        return 2 * math.prod(_dims(operation.result)) * contracted

    def kernels(self) -> dict[str, int]:
        """Attention kernels: what is called -> how often one run calls it.

        cuDNN's are named by the library's call, others by the name that their author gave them.
        """
        found: Counter[str] = Counter()
        for name, count in self.runs().items():
            for operation, _ in self._with_fused(name):
                if _is_kernel(operation):
                    found[kernel_name(operation)] += count
        return dict(found)

    def _computes(self, operation: Operation) -> bool:
        """Does it multiply matrices, or attend, or loop over what does?"""
        if operation.kind in ("dot", "convolution", "while") or _is_kernel(operation):
            return True
        if operation.kind == "custom-call":
            return operation.target.startswith(_PRODUCTS)
        return operation.kind == "fusion" and any(
            self._computes(inner)
            for called in operation.named("calls")
            for inner in self.computations[called]
        )

    def _concurrent(self, name: str) -> dict[str, bool]:
        """Collectives of a GPU's computation that have a start and an end: is there work between?

        Work is a product or an attention kernel that is scheduled after the start and before the
        end. The start and the end alone prove nothing: every collective of a GPU has them.
        """
        open_at: dict[str, int] = {}
        found: dict[str, bool] = {}
        work = 0
        for operation in self.computations[name]:
            if operation.kind.endswith("-start"):
                open_at[operation.name] = work
            elif operation.kind.endswith("-done"):
                for start in operation.operands:
                    if start in open_at:
                        found[start] = work > open_at[start]
            else:
                work += self._computes(operation)
        return found

    def collectives(self) -> dict[str, dict[str, int]]:
        """Collectives of one run by kind.

        On a TPU a collective that runs concurrently with computation is spread over several
        fusions with one channel. On a GPU it runs so where a product or an attention kernel is
        scheduled between its start and its end.

        Returns:
          kind -> count (in the text), runs (loops in full), concurrent (how many of count run
          concurrently with computation), bytes (runs times the bytes of the whole array that is
          gathered, summed or scattered), bytes_concurrent (those of the concurrent ones).
        """
        channels: dict[tuple[str, str], tuple[int, int, bool]] = {}
        for name, count in self.runs().items():
            concurrent = self._concurrent(name) if self.for_gpu else {}
            for operation, overlapped in self._with_fused(name):
                kind = operation.kind.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                channel = re.search(r"channel_id=(\d+)", operation.rest)
                key = kind, channel.group(1) if channel else f"{name} {operation.result}"
                if operation.kind.endswith("-start"):
                    overlapped = overlapped or concurrent.get(operation.name, not self.for_gpu)
                size, runs, before = channels.get(key, (0, 0, False))
                size = max(size, _moved(operation))
                channels[key] = size, max(runs, count), before or overlapped
        kinds: dict[str, dict[str, int]] = {}
        for (kind, _), (size, runs, overlapped) in channels.items():
            of_kind = kinds.setdefault(kind, dict.fromkeys(KEYS, 0))
            of_kind["count"] += 1
            of_kind["runs"] += runs
            of_kind["concurrent"] += overlapped
            of_kind["bytes"] += runs * size
            of_kind["bytes_concurrent"] += runs * size * overlapped
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


def _dims(shape: str) -> list[int]:
    """Dimensions of the first array of a shape: what a product gives, before its workspace."""
    found = _SHAPE.search(shape)
    assert found is not None
    return [int(n) for n in found.group(2).split(",") if n]


def _is_kernel(operation: Operation) -> bool:
    return operation.kind == "custom-call" and operation.target.startswith(_KERNELS)


def kernel_name(operation: Operation) -> str:
    """The name of a kernel: cuDNN's target, or the last names of where it was called from."""
    if operation.target.startswith("__cudnn$"):
        return operation.target.removeprefix("__cudnn$")
    found = re.search(r'op_name="([^"]*)"', operation.rest)
    path = found.group(1).split("/") if found else []
    return path[-2] if len(path) > 1 else operation.target


def _moved(operation: Operation) -> int:
    """Bytes of the whole array of a collective."""
    if operation.kind not in ("all-gather-start", "reduce-scatter-start"):
        return num_bytes(operation.result)
    # The result of a start names what goes in, then what comes out: the larger is the whole.
    sizes = [num_bytes(f"{kind}[{dims}]") for kind, dims in _SHAPE.findall(operation.result)]
    half = len(sizes) // 2
    return max(sum(sizes[:half]), sum(sizes[half:]))
