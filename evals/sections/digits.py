"""How many generated digits a classifier recognises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.reporting import comparison
from evals.reporting.numbers import PLUS_MINUS, with_error
from evals.reporting.page import Cell, Column, Figure, Table
from evals.reporting.results import Evaluation
from evals.sections import figures


def digits(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """digits.json: how many digits a classifier recognises."""
    notes = comparison.differences(evaluations, "digits")
    results = [one.results["digits"] for one in evaluations]
    names = {
        "recognised": "Recognised as the requested label ↑",
        "recognised_first": "The same, first frame ↑",
        "recognised_last": "The same, last frame ↑",
        "strictly_valid": "Strictly valid ↑",
        "classifier_accuracy": "The same classifier on real digits",
    }
    rows = [
        (text, [_share(result, name) for result in results])
        for name, text in names.items()
        if any(name in result for result in results)
    ]
    columns = [Column(one.name, note) for one, note in zip(evaluations, notes, strict=True)]
    table = Table(figures.READING, columns, rows)
    counts = dict.fromkeys(f"{result['requested']:,} documents" for result in results)
    text = f"{'; '.join(counts)}, of which those that show nothing count as not recognised"
    return [figures.figure(evaluations, "digits", "Generated digits", [table], text)]


def _share(result: Mapping[str, Any], name: str) -> Cell:
    """A share with its error, in percent."""
    if name not in result:
        return Cell("-")
    error = result.get(f"{name}_standard_error")
    return Cell(f"{with_error(100 * result[name], error and 100 * error, PLUS_MINUS)}\u00a0%")
