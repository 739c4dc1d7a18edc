"""What the sections share: the frame of a figure, and cells of their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.reporting import comparison
from evals.reporting.numbers import PLUS_MINUS, with_error
from evals.reporting.page import Block, Cell, Figure
from evals.reporting.results import Evaluation
from evals.sections import headlines

READING = "↓ lower is better; ↑ higher is better"
DOCUMENTS = {  # counts of `codec` -> their names in a table
    "requested": "requested",
    "strictly_valid": "strictly valid",
    "salvaged": "invalid, shown in part",
    "failed": "invalid, nothing can be shown (counted as grey)",
    "other_than_manifest": "validity other than the manifest states",
    "units": "units before the first damage",
    "expected_units": "units expected",
    "frames_missing": "frames missing",
    "frames_damaged": "frames damaged",
}


def figure(
    evaluations: Sequence[Evaluation],
    kind: str,
    title: str,
    blocks: Sequence[Block],
    text: str = "",
) -> Figure:
    """A figure of one kind of result, with its warnings, missing figures and sources."""
    results = [one.results[kind] for one in evaluations]
    several = len(evaluations) > 1
    warnings = [
        f"{one.name}: {text}" if several else text
        for one in evaluations
        for text in one.results[kind]["warnings"]
    ]
    missing = {
        f"{one.name}: {headlines.title(name)}" if several else headlines.title(name): reason
        for one, result in zip(evaluations, results, strict=True)
        for name, reason in result["not_computed"].items()
    }
    sources = [comparison.source(one, kind) for one in evaluations]
    return Figure(title, blocks, sources, text, warnings, missing)


def of_one(one: Evaluation, evaluations: Sequence[Evaluation]) -> str:
    """Whose a figure is, as the end of its title; "" where there is only one evaluation."""
    return f" of {one.name}" if len(evaluations) > 1 else ""


def metric_cell(found: Mapping[str, Any], name: str) -> Cell:
    """A metric of a result with its standard error."""
    return Cell(with_error(found.get(name), found.get(f"{name}_standard_error"), PLUS_MINUS))


def count_cell(codec: Mapping[str, Any], name: str) -> Cell:
    """A count of generated documents, with its share of those requested where it is one."""
    count, total = codec.get(name), codec.get("requested")
    if count is None:
        return Cell("-")
    of_requested = name in ("strictly_valid", "salvaged", "failed") and total
    return Cell(f"{count:,}" + (f" ({percent(count / total)})" if of_requested else ""))


def percent(share: float) -> str:
    """A share with one decimal: "12.3 %"."""
    return f"{100 * share:.1f}\u00a0%"
