"""The difference of two models by class against the frequency of the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.reporting import curves
from evals.reporting.numbers import number
from evals.reporting.page import Block, Cell, Chart, Column, Figure, Table
from evals.reporting.results import Evaluation
from evals.sections import figures, headlines


def long_tail(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """longtail.json: the difference of two models by class against the class frequency."""
    found = []
    for one in evaluations:
        result = one.results["longtail"]
        names = ("spearman", "pearson", "pearson_log")
        rows = [
            (
                f"{prefix}{name}".replace("_", " "),
                [
                    Cell(number(result.get(prefix + name))),
                    Cell(number(result.get(f"{prefix}{name}_p_value"))),
                ],
            )
            for prefix in ("", "kernel_")
            for name in names
        ]
        header = [Column("coefficient"), Column("p")]
        columns = ("frequency", "n", "a", "b", "difference")
        classes = [
            (row["class"], [Cell(number(row[column])) for column in columns])
            for row in sorted(result["classes"], key=lambda row: row["frequency"])
        ]
        blocks: list[Block] = [
            long_tail_plot(result),
            Table("Correlation of the difference, a - b, with the frequency", header, rows),
            Table("Every class", [Column(name) for name in columns], classes, folded=True),
        ]
        title = f"Difference of two models by class{figures.of_one(one, evaluations)}"
        text = "A positive correlation: a is better where classes are rare"
        found.append(figures.figure([one], "longtail", title, blocks, text))
    return found


def long_tail_plot(result: Mapping[str, Any]) -> Chart:
    """The difference of each class against its frequency, of longtail.json."""
    rows = result["classes"]
    correlation = "no correlation can be computed"
    if result["spearman"] is not None:
        correlation = f"Spearman {result['spearman']:.2f}, p = {result['spearman_p_value']:.2g}"
    metric = headlines.title(result["metric"])
    return curves.scatter(
        [row["frequency"] for row in rows],
        [row["difference"] for row in rows],
        f"{metric}, a - b, by class: {correlation}",
        "frequency of the class",
        "a - b",
        f"{len(rows)} classes; {metric} of a minus that of b against frequency. {correlation}.",
        log_x=all(row["frequency"] > 0 for row in rows),
    )
