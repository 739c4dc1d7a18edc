"""Completions of real images next to their originals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.media.images import ImageError
from evals.reporting import page
from evals.reporting.numbers import PLUS_MINUS, with_error
from evals.reporting.page import Block, Cell, Column, Figure, Strip, Strips, Table
from evals.reporting.results import Evaluation
from evals.sections import figures, headlines


def completions(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """completion.json: the paper's table with the codec floor, and grids of completions."""
    return [_completion(one, evaluations) for one in evaluations]


def _completion(one: Evaluation, evaluations: Sequence[Evaluation]) -> Figure:
    result = one.results["completion"]
    names = list(result["grids"])
    rows = [
        (row, [_mean(cells.get(name)) for name in names]) for row, cells in result["table"].items()
    ]
    codecs = [
        [each["metrics"]["codec"] for each in result["completions"] if each["column"] == name]
        for name in names
    ]
    for name in ("requested", "strictly_valid", "salvaged", "failed"):
        sums = [
            {key: sum(codec[key] for codec in own) for key in (name, "requested")} for own in codecs
        ]
        rows.append((figures.DOCUMENTS[name], [figures.count_cell(own, name) for own in sums]))
    heads = [_column_title(name) for name in names]
    metric = headlines.title(result["metric"])
    columns = [
        Column(head, _asked_for(result["columns"][name]))
        for name, head in zip(names, heads, strict=True)
    ]
    table = Table(f"{metric} of completed images ↓", columns, rows)
    blocks: list[Block] = [table]
    seeds = list(dict.fromkeys(each["seed"] for each in result["completions"]))
    strips, missing = [], []
    for name, head in zip(names, heads, strict=True):
        prompted = _is_prompted(name)
        words = ["original", *["prompt"] * prompted, *(f"seed {seed}" for seed in seeds)]
        caption = f"{head}: continuations" if prompted else "no prompt: samples"
        text = f"{caption} of several seeds next to an original, one original in a row"
        try:
            picture = page.picture(one.file(result["grids"][name]), f"{text}; of {one.name}")
            strips.append(Strip(f"{caption[:1].upper()}{caption[1:]}", words, picture))
        except (ImageError, OSError) as error:
            missing.append(f"{result['grids'][name]}: {error}")
    if strips:
        blocks.append(Strips(strips))
    title = f"Completions of real images{figures.of_one(one, evaluations)}"
    text = "; ".join(
        [
            f"{result['n_generated']:,} continuations for each of {len(seeds)} seeds; mean "
            "over the seeds with its standard error",
            *headlines.sampling(result),
        ]
    )
    figure = figures.figure([one], "completion", title, blocks, text)
    return dataclasses.replace(figure, warnings=[*figure.warnings, *missing])


def _is_prompted(name: str) -> bool:
    """Whether a column is of continuations; it is then named by the share in the prompts."""
    return name[:1].isdigit()


def _column_title(name: str) -> str:
    return f"prompt {name}" if _is_prompted(name) else f"{name}: samples"


def _asked_for(column: Mapping[str, Any]) -> str:
    """The ratios that were asked for, and the shares of single images, where these differ."""
    parts = []
    share, ratios = column["prompt_share"], column["ratios"]
    if ratios != [share] and share:
        parts.append(f"asked for {', '.join(f'{ratio:g}' for ratio in ratios)}")
    least, most = column["prompt_share_min"], column["prompt_share_max"]
    if least != most:
        parts.append(f"{least:.3g} to {most:.3g} of each image")
    return "; ".join(parts)


def _mean(cell: Mapping[str, Any] | None) -> Cell:
    if cell is None:
        return Cell("-")
    return Cell(with_error(cell["value"], cell["standard_error"], PLUS_MINUS))
