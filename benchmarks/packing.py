"""Fill of planned rows, time and memory of planning, and rows per second of lookups.

    python -m benchmarks.packing [--documents=23000000] [--out=benchmarks/results/packing.json]

Lengths follow the paper (arXiv 2408.08459: 23 million images, rows of 12,288): a log-normal
distribution with median 4,500 and sigma 0.45. Each measurement runs in its own process, so that its
peak memory (resource.getrusage: Python, numpy and the lengths included) is separate. The fill is
compared with first-fit decreasing on the same histogram of lengths and with an upper bound.
"""

from __future__ import annotations

import json
import multiprocessing
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from absl import app, flags

from data_pipelines.packing.planner import MODES, make_plan
from data_pipelines.utils.cpus import num_cpus

_DOCUMENTS = flags.DEFINE_integer("documents", 23_000_000, "Documents of the largest set.")
_OUT = flags.DEFINE_string("out", "benchmarks/results/packing.json", "File for the results.")

SEQ_LEN = 12_288


def paper_lengths(documents: int) -> np.ndarray:
    """Positions of each document, uint32; made in parts to save memory."""
    rng = np.random.default_rng(0)
    lengths = np.empty(documents, np.uint32)
    for part in np.array_split(lengths, max(documents // 2**20, 1)):
        part[:] = np.rint(4500 * np.exp(0.45 * rng.standard_normal(part.size))) + 1
    return lengths


def measure(documents: int, mode: str) -> dict[str, Any]:
    """Plans rows, then looks up rows of the first epoch in batches of 128."""
    lengths = paper_lengths(documents)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    plan = make_plan(lengths, seq_len=SEQ_LEN, mode=mode)
    seconds = time.perf_counter() - start
    plan.row(0)  # "concat" builds a table of an epoch on its first row
    batches = min(plan.rows_per_epoch // 128 + 1, 100)
    start = time.perf_counter()
    for batch in range(batches):
        plan.rows(np.arange(128) + 128 * batch)
    lookup = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "documents": documents,
        "mode": mode,
        "dropped": plan.stats.dropped,
        "split": plan.stats.split,
        "rows": plan.rows_per_epoch,
        "fill": plan.stats.fill,
        "plan_seconds": seconds,
        "rows_per_second": 128 * batches / lookup,
        "peak_gib": peak / 2**20,
        "peak_before_planning_gib": before / 2**20,
    }
    if mode == "pack":
        histogram = np.bincount(lengths[lengths <= SEQ_LEN], minlength=SEQ_LEN + 1)
        result["fill_first_fit_decreasing"] = plan.stats.positions / (
            first_fit_decreasing(histogram) * SEQ_LEN
        )
        result["fill_bound"] = plan.stats.positions / (fewest_rows(histogram) * SEQ_LEN)
    return result


def measure_short_rows() -> dict[str, Any]:
    """Rows of 128 with one or two documents each, where lookups are most expensive per token."""
    lengths = np.random.default_rng(0).integers(50, 100, 100_000)
    result: dict[str, Any] = {"seq_len": 128, "documents": lengths.size}
    for mode in MODES:
        plan = make_plan(lengths, seq_len=128, mode=mode)
        plan.row(0)
        start = time.perf_counter()
        for batch in range(100):
            plan.rows(np.arange(256) + 256 * batch)
        result[f"{mode}_rows_per_second"] = 25_600 / (time.perf_counter() - start)
    return result


def first_fit_decreasing(histogram: np.ndarray) -> int:
    """Number of rows of first-fit decreasing; equal rows are counted at once."""
    counts = histogram.tolist()
    rows = 0
    for longest in range(len(counts) - 1, 0, -1):
        while counts[longest]:
            row: dict[int, int] = {}
            gap, length = len(counts) - 1, longest
            while length:
                fitting = min(counts[length], gap // length)
                if fitting:
                    row[length] = fitting
                    gap -= fitting * length
                length = min(length - 1, gap)
            times = min(counts[length] // number for length, number in row.items())
            for length, number in row.items():
                counts[length] -= times * number
            rows += times
    return rows


def fewest_rows(histogram: np.ndarray) -> int:
    """A lower bound on the number of rows: the maximum over all thresholds k.

    Martello and Toth, "Lower bounds and reduction procedures for the bin packing problem", 1990:
    each document longer than half a row needs its own row, and rows with a document longer than
    `row - k` have no space for a document of length k or more.
    """
    row = histogram.size - 1
    lengths = np.arange(row + 1)
    count = np.cumsum(histogram[::-1])[::-1]  # documents at least that long
    positions = np.cumsum((histogram * lengths)[::-1])[::-1]
    best = -(-int(positions[0]) // row)
    half = row // 2
    for k in range(1, half + 1):
        full = int(count[row - k + 1])
        large = int(count[half + 1]) - full
        large_positions = int(positions[half + 1] - positions[row - k + 1])
        small_positions = int(positions[k] - positions[half + 1])
        more = max(0, -(-(small_positions - (large * row - large_positions)) // row))
        best = max(best, full + large + more)
    return best


def in_new_process(function: Any, *arguments: Any) -> Any:
    """Calls a function in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(function, *arguments).result()


def main(_: Sequence[str]) -> None:
    sizes = [n for n in (300, 1_000, 10_000, 100_000, 1_000_000) if n < _DOCUMENTS.value]
    cases = [(n, "pack") for n in sizes]
    cases += [(_DOCUMENTS.value, "pack"), (_DOCUMENTS.value, "concat")]
    results = []
    for documents, mode in cases:
        results.append(in_new_process(measure, documents, mode))
        print(json.dumps(results[-1]), flush=True)
    short_rows = in_new_process(measure_short_rows)
    print(json.dumps(short_rows), flush=True)
    report = {
        "command": "python -m benchmarks.packing " + " ".join(sys.argv[1:]),
        "cores": num_cpus(),
        "processor": platform.machine(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "seq_len": SEQ_LEN,
        "plans": results,
        "short_rows": short_rows,
    }
    path = pathlib.Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
