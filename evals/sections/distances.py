"""Distances of generated from real images: of all, with captions, and by class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evals.reporting import comparison
from evals.reporting.page import Block, Cell, Column, Figure, Table
from evals.reporting.results import Evaluation
from evals.sections import figures, headlines

_FLOOR = "codec floor"
# The three comparisons of an evaluation, and where they are in its result.
_COMPARISONS: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any] | None]] = {
    "model": lambda result: result,
    "model, references coded": lambda result: result.get("against_coded_references"),
    _FLOOR: lambda result: result.get("floor"),
}
_SHOWN_CLASSES = 30  # tables of more are folded


def distances(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """metrics.json of `evals.fid`: the three comparisons, and counts of the documents."""
    return [compared(evaluations, "metrics", "Distances from real images")]


def clip_scores(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """clip_score.json: how well images match their captions."""
    return [compared(evaluations, "clip_score", "Images and their captions")]


def compared(evaluations: Sequence[Evaluation], kind: str, title: str) -> Figure:
    """The metrics of all evaluations in one table, and the counts of their documents."""
    notes = comparison.differences(evaluations, kind)
    results = [one.results[kind] for one in evaluations]
    names = [one.name for one in evaluations]
    if len(evaluations) == 1:
        found = {name: get(results[0]) for name, get in _COMPARISONS.items()}
        columns = {Column(name): values for name, values in found.items() if values}
        blocks: list[Block] = [_metrics(figures.READING, columns)]
    else:
        models = {
            Column(*each): result for *each, result in zip(names, notes, results, strict=True)
        }
        others = {
            name: {
                Column(f"{own}: {name}", note): values
                for own, note, result in zip(names, notes, results, strict=True)
                if (values := get(result))
            }
            for name, get in list(_COMPARISONS.items())[1:]
        }
        floors = others.pop(_FLOOR)
        if len(floors) == len(results) and len({repr(found) for found in floors.values()}) == 1:
            floors = {Column(_FLOOR): next(iter(floors.values()))}
        blocks = [_metrics(figures.READING, {**models, **floors})]
        blocks += [
            _metrics(f"The same: {name}; {figures.READING}", columns, folded=True)
            for name, columns in others.items()
            if columns
        ]
    counts = _counts(evaluations, kind, notes)
    if counts.rows:
        blocks.append(counts)
    text = "; ".join(
        dict.fromkeys(", ".join(headlines.sides(one.results[kind])) for one in evaluations)
    )
    return figures.figure(evaluations, kind, title, blocks, text)


def _metrics(
    caption: str, columns: Mapping[Column, Mapping[str, Any]], *, folded: bool = False
) -> Table:
    """A table of all metrics of several results, with their standard errors."""
    rows = [
        (
            f"{headlines.title(name)} {headlines.arrow(name)}",
            [figures.metric_cell(found, name) for found in columns.values()],
        )
        for name in headlines.metric_names(list(columns.values()))
    ]
    return Table(caption, list(columns), rows, folded)


def _counts(evaluations: Sequence[Evaluation], kind: str, notes: Sequence[str]) -> Table:
    codecs = [one.results[kind].get("codec") or {} for one in evaluations]
    rows = []
    for name, text in figures.DOCUMENTS.items():
        if name == "other_than_manifest" and not any(codec.get(name) for codec in codecs):
            continue
        if any(codec.get(name) is not None for codec in codecs):
            rows.append((text, [figures.count_cell(codec, name) for codec in codecs]))
    columns = [Column(one.name, note) for one, note in zip(evaluations, notes, strict=True)]
    return Table("Generated documents", columns, rows)


def by_class(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """classes.json of `evals.fid --per_class`: the figures of every class, the worst first."""
    return [_by_class(one, evaluations) for one in evaluations]


def _by_class(one: Evaluation, evaluations: Sequence[Evaluation]) -> Figure:
    result = one.results["classes"]
    metric, rows = result["metric"], result["classes"]
    names = [
        name
        for name in headlines.metric_names(rows)
        if any(row.get(name) is not None for row in rows)
    ]
    largest = max((row[metric] for row in rows), default=1.0)
    lines = [
        (
            row["class"],
            [
                *(
                    dataclasses.replace(
                        figures.metric_cell(row, name),
                        share=max(row[name], 0) / largest if name == metric and largest else None,
                    )
                    for name in names
                ),
                Cell(f"{row['n']:,} / {row['n_references']:,}"),
            ],
        )
        for row in sorted(rows, key=lambda row: row[metric], reverse=True)
    ]
    columns = [Column(f"{headlines.title(name)} {headlines.arrow(name)}") for name in names]
    columns.append(Column("images", "generated / real"))
    caption = f"Every class, largest {headlines.title(metric)} first"
    table = Table(caption, columns, lines, folded=len(lines) > _SHOWN_CLASSES)
    title = f"Classes{figures.of_one(one, evaluations)}"
    text = f"{len(rows):,} classes, {', '.join(headlines.sides(result))}"
    return figures.figure([one], "classes", title, [table], text)
