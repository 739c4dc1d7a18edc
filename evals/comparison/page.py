"""The page of a comparison: tables with both budgets side by side, plots, sample grids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.utils.files import write_atomically
from evals.comparison.stages import LONG_TAIL
from evals.reporting import curves
from evals.reporting.numbers import PLUS_MINUS, number, with_error
from evals.reporting.page import (
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Figure,
    Page,
    Section,
    Source,
    Strip,
    Strips,
    Table,
    picture,
    render,
)
from evals.reporting.results import Evaluation
from evals.sections import headlines
from evals.sections.completions import completions
from evals.sections.longtail import long_tail

PLOTS = "plots"  # a folder of the comparison
_BUDGETS = {"images": "equal images seen", "flops": "equal training FLOPs"}
# Columns of the table of a model: name in compare.json -> (title, factor).
_MEASURES = {
    "images_seen": ("Images seen", 1.0),
    "train_flops": ("Training, TFLOP", 1e-12),
    "bits_per_image": ("Bits per image ↓", 1.0),
    "bits_per_dimension": ("Bits per dimension ↓", 1.0),
    "valid": ("Valid, % ↑", 100.0),
    "recognised": ("Recognised, % ↑", 100.0),
    "images_per_second": ("Sampled images per second ↑", 1.0),
}


def write(result: Mapping[str, Any], out: epath.Path) -> epath.Path:
    """Writes compare.html to the folder of a comparison, from the contents of its compare.json.

    The plots are written as files, too: plots/NAME.svg.
    """
    charts = _charts(result)
    (out / PLOTS).mkdir(exist_ok=True)
    for name, chart in charts.items():
        curves.save(chart, out / PLOTS / f"{name}.svg")
    plots = Figure(
        "By training FLOPs",
        [Charts(list(charts.values()))],
        [_source(result)],
        "All models and both budgets.",
    )
    found = [
        Section("results", "Results", _results(result)),
        Section("plots", "Plots", [plots]),
        Section("samples", "Samples", [_samples(result, out)]),
        Section("completions", "Completions", _completions(result["completion"], out)),
        Section("small", "Small elements", _completions(result["small_elements"], out)),
        Section("long_tail", "The long tail", _long_tail(result, out)),
        Section("candidates", "Candidates", [_candidates(result)]),
    ]
    settings = result["settings"]
    page = Page(
        title=f"Comparison {settings['config.preset']}",
        facts=[
            f"{len(result['candidates'])} candidates on {settings['config.data.source']}; "
            f"{_features(settings)}"
        ],
        cards=[],
        sections=[section for section in found if section.figures],
        command=result["command"],
        versions=[", ".join(f"{name} {value}" for name, value in result["versions"].items())],
    )
    path = out / "compare.html"
    write_atomically(path, render(page).encode())
    return path


def _features(settings: Mapping[str, Any]) -> str:
    if "network" not in settings:
        return "samples are not scored"
    dims = settings.get("network_dims")
    return f"scored with {settings['network']}" + (f", {dims} dimensions" if dims else "")


def _source(result: Mapping[str, Any]) -> Source:
    return Source("comparison", result["command"], result["settings"], "compare.json")


def _results(result: Mapping[str, Any]) -> list[Figure]:
    """A figure for each model: rows are candidates and budgets, columns measures."""
    figures = []
    for model in dict.fromkeys(line["model"] for line in result["lines"]):
        lines = [line for line in result["lines"] if line["model"] == model]
        parameters = sorted({line["parameters"] for line in lines})
        size = f"{parameters[0] / 1e6:.1f} to {parameters[-1] / 1e6:.1f} million parameters"
        blocks: list[Block] = [
            _table(result, _BUDGETS[budget], [line for line in lines if line["budget"] == budget])
            for budget in dict.fromkeys(line["budget"] for line in lines)
        ]
        text = (
            f"{size}. Errors are over seeds where there are several, otherwise of samples. Bits "
            "per image are compared among candidates that describe the same files."
        )
        figures.append(Figure(f"Model {model}", blocks, [_source(result)], text))
    return figures


def _table(result: Mapping[str, Any], caption: str, lines: Sequence[Mapping[str, Any]]) -> Table:
    measures = {name: shown for name, shown in _MEASURES.items() if any(name in o for o in lines)}
    for name in headlines.metric_names(lines):
        if name not in measures and name in result["distances"]:
            title, arrow = headlines.title(name), headlines.arrow(name)
            measures[name] = (f"{title} {arrow}", 1.0)
            coded = f"{name}_coded"
            if any(coded in line for line in lines):
                measures[coded] = (f"{title}, coded references {arrow}", 1.0)
    rows = [
        (
            line["candidate"],
            [_cell(result, line, name, factor) for name, (_, factor) in measures.items()],
        )
        for line in lines
    ]
    return Table(caption, [Column(title) for title, _ in measures.values()], rows)


def _cell(
    result: Mapping[str, Any], line: Mapping[str, Any], name: str, factor: float = 1.0
) -> Cell:
    candidate = result["candidates"][line["candidate"]]
    if name == "bits_per_image" and len(candidate["bits_comparable_with"]) < 2:
        return Cell("not comparable")
    if name not in line:
        return Cell("-")
    error = line.get(f"{name}_standard_error")
    seeds = f"{line['seeds']} seeds" if line["seeds"] > 1 else ""
    return Cell(
        with_error(line[name] * factor, error * factor if error else None, PLUS_MINUS), seeds
    )


def _charts(result: Mapping[str, Any]) -> dict[str, Chart]:
    """Measures by training FLOPs, by their names: a curve for each candidate."""
    charts = {}
    for name, title in (
        (result["distances"][0] if result["distances"] else "", None),
        ("valid", "Share of valid samples"),
        ("bits_per_image", "Bits per image"),
    ):
        series = {}
        for colour, candidate in enumerate(result["candidates"]):
            points = sorted(
                (line["train_flops"] * 1e-12, line[name])
                for line in result["lines"]
                if line["candidate"] == candidate and name in line
            )
            alone = len(result["candidates"][candidate]["bits_comparable_with"]) < 2
            if points and not (name == "bits_per_image" and alone):
                x, y = zip(*points, strict=True)
                series[candidate] = curves.Line(x, y, colour=colour, dashed=colour > 6)
        if series:
            title = title or headlines.title(name)
            charts[name] = curves.lines(series, title, "training, TFLOP", log_x=True)
    return charts


def _samples(result: Mapping[str, Any], out: epath.Path) -> Figure:
    """The sample grid of each candidate: the largest model under the last budget."""
    last = result["lines"][-1]
    models = list(dict.fromkeys(line["model"] for line in result["lines"]))
    strips = []
    for candidate in result["candidates"]:
        own = [line for line in result["lines"] if line["candidate"] == candidate]
        line = next(
            (o for o in own if (o["model"], o["budget"]) == (models[-1], last["budget"])), own[-1]
        )
        grid = picture(out / line["samples"], f"Samples of {candidate}")
        title = f"{candidate}, model {line['model']}, {_BUDGETS[line['budget']]}"
        strips.append(Strip(title, [], grid))
    text = "The first samples of each run, one label after the other, invalid ones included."
    return Figure("Samples", [Strips(strips)], [_source(result)], text)


def _completions(found: Mapping[str, Mapping[str, Any]], out: epath.Path) -> list[Figure]:
    """A figure of each candidate that completes images: the paper's table, and grids."""
    evaluations = []
    for candidate, one in found.items():
        evaluation = Evaluation.read(out / one["folder"], ("completion",))
        evaluations.append(dataclasses.replace(evaluation, name=candidate))
    return completions(evaluations)


def _long_tail(result: Mapping[str, Any], out: epath.Path) -> list[Figure]:
    """The difference of two candidates by class frequency; a is the first that is named."""
    if not result["long_tail"]:
        return []
    a, b = result["settings"]["config.long_tail"]
    (figure,) = long_tail([Evaluation.read(out / LONG_TAIL, ("longtail",))])
    return [dataclasses.replace(figure, text=f"a is {a}, b is {b}. {figure.text}")]


def _candidates(result: Mapping[str, Any]) -> Figure:
    columns = ["Tokens per image", "Vocabulary", "Sequence length", "Learning rate", "PSNR, dB"]
    floors = [f"Floor: {headlines.title(name)}" for name in result["distances"]]
    rows = []
    for name, found in result["candidates"].items():
        floor = found["floor"]
        cells = [
            Cell(f"{found['tokens_per_image']:.1f}"),
            Cell(number(found["vocab_size"])),
            Cell(number(found["seq_len"])),
            Cell(f"{found['learning_rate']:g}"),
            Cell("exact" if found["psnr_db"] is None else f"{found['psnr_db']:.1f}"),
        ]
        cells += [
            Cell(with_error(floor.get(key), floor.get(f"{key}_standard_error"), PLUS_MINUS))
            for key in result["distances"]
        ]
        rows.append((name, cells))
    table = Table(
        "Candidates, and the distance of their reconstructions of real images from these images",
        [Column(title) for title in (*columns, *floors)],
        rows,
    )
    return Figure("Candidates", [table], [_source(result)])
