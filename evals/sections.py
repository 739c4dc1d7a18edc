"""How each kind of result is shown in a report: one function a kind, listed in KINDS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from data_pipelines.media.images import ImageError
from evals import longtail
from evals.compression import TITLES
from evals.reporting import curves, page
from evals.reporting.page import Html
from evals.reporting.results import Evaluation

# What is no number of the evaluation itself.
_FIGURES = {
    "generated": lambda result: result,
    "generated, references coded": lambda result: result.get("against_coded_references"),
    "floor: references coded": lambda result: result.get("floor"),
}


class Kind(NamedTuple):
    """A kind of result: its heading in a report, and how all of that kind are shown."""

    heading: str
    show: Callable[[Sequence[Evaluation], epath.PathLike], Html]


def distances(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """metrics.json of `evals.fid`: the three figures side by side, and what became of the files."""
    columns: dict[str, Mapping[str, Any]] = {}
    for one in evaluations:
        for name, take in _FIGURES.items():
            values = take(one.results["metrics"])
            if values:
                columns[f"{one.name}: {name}" if len(evaluations) > 1 else name] = values
    parts = [_side_by_side("Distances", columns)]
    counts = [
        ("images judged", *(one.results["metrics"].get("n_generated") for one in evaluations)),
        ("references", *(one.results["metrics"].get("n_references") for one in evaluations)),
    ]
    codecs = [one.results["metrics"].get("codec") or {} for one in evaluations]
    for name in dict.fromkeys(name for codec in codecs for name in codec):
        counts.append((name.replace("_", " "), *(codec.get(name) for codec in codecs)))
    parts.append(page.table("Counts", ("", *(one.name for one in evaluations)), counts))
    for one in evaluations:
        parts.append(_notes(one.results["metrics"]))
    return page.joined(parts)


def likelihood(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """likelihood.json: bits of images that the model has not seen, beside the codec's own."""
    results = {one.name: one.results["likelihood"] for one in evaluations}
    parts = [_side_by_side("Bits of images that were not trained on", results)]
    for one in evaluations:
        result = one.results["likelihood"]
        parts.append(page.element("p", f"{one.name}: {result['n_images']:,} images."))
        parts.append(_notes(result))
    return page.joined(parts)


def compression(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """compression.json: bytes an image under the model and under other codes."""
    results = [one.results["compression"] for one in evaluations]
    names = [name for name in TITLES if any(f"{name}_per_image" in result for result in results)]
    header = [
        title
        for one in evaluations
        for title in (f"{one.name}: bytes an image", "part of the modelled stream")
    ]
    rows = [
        (TITLES[name], *(cell for result in results for cell in _sizes(result, name)))
        for name in names
    ]
    parts = [page.table("Size of the same images", ("", *header), rows)]
    parts += [_notes(result) for result in results]
    return page.joined(parts)


def completions(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """completion.json: the paper's table with the codec's floor, and originals beside what was
    made of their beginnings."""
    parts = []
    for one in evaluations:
        result = one.results["completion"]
        columns = list(result["grids"])
        rows = [
            (row, *(_cell(cells.get(column)) for column in columns))
            for row, cells in result["table"].items()
        ]
        valid = [
            [each["metrics"]["codec"] for each in result["completions"] if each["column"] == name]
            for name in columns
        ]
        for name in ("requested", "strictly_valid", "salvaged", "failed"):
            counts = [sum(codec[name] for codec in codecs) for codecs in valid]
            rows.append((name.replace("_", " "), *counts))
        metric = result["metric"].replace("_", " ")
        given = [f"{column} given" if column[:1].isdigit() else column for column in columns]
        parts.append(page.table(f"{one.name}: {metric} of completed images", ("", *given), rows))
        parts.append(_notes(result))
        for column, name in result["grids"].items():
            told = f"Originals, beginnings and completions of {one.name}, {column} given"
            caption = f"{column} given: original, what was given, completions."
            try:
                parts.append(page.picture(one.beside(name), told, caption))
            except (ImageError, OSError) as error:
                parts.append(page.notes([f"{name}: {error}"]))
    return page.joined(parts)


def _cell(cell: Mapping[str, Any] | None) -> Html:
    if cell is None:
        return page.escape(None)
    return page.value_and_error(cell["value"], cell["standard_error"])


def videos(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """video.json: distances, decoding, quality by frame, and clips that play."""
    columns: dict[str, Mapping[str, Any]] = {}
    for one in evaluations:
        for name, take in _FIGURES.items():
            values = take(one.results["video"])
            if values:
                columns[f"{one.name}: {name}" if len(evaluations) > 1 else name] = values
    parts = [_side_by_side("Distances from real clips", columns)]
    for one in evaluations:
        result = one.results["video"]
        counts = [(name.replace("_", " "), count) for name, count in result["codec"].items()]
        parts.append(page.table(f"{one.name}: documents", ("", "count"), counts))
        parts.append(_notes(result))
        if "continuations" in result:
            parts.append(_by_frame(one.name, result["continuations"]))
        shown = [
            page.video(one.beside(name), f"Clip {place} of {one.name}")
            for place, name in enumerate(result["videos"], 1)
        ]
        parts.append(page.side_by_side(shown))
    return page.joined(parts)


def _by_frame(name: str, found: Mapping[str, Any]) -> Html:
    figures = []
    for metric, title in (("psnr_db", "PSNR, dB"), ("ssim", "SSIM")):
        frames = list(range(1, len(found[metric]) + 1))
        series = {
            "continuation": (frames, found[metric]),
            "codec alone": (frames, found[f"floor_{metric}"]),
        }
        figures.append(curves.lines(series, f"{name}: {title} by frame", "frame", title))
    return page.side_by_side(figures)


def long_tail(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """longtail.json: the difference of two models by class, against frequency."""
    parts = []
    for one in evaluations:
        result = one.results["longtail"]
        parts.append(longtail.plot(result))
        names = ("spearman", "pearson", "pearson_log")
        rows = [
            (
                f"{prefix}{name}".replace("_", " "),
                result.get(prefix + name),
                result.get(f"{prefix}{name}_p_value"),
            )
            for prefix in ("", "kernel_")
            for name in names
        ]
        header = ("", "coefficient", "p")
        parts.append(page.table(f"{one.name}: difference and frequency", header, rows))
        columns = ("class", "frequency", "n", "a", "b", "difference")
        classes = [[row[column] for column in columns] for row in result["classes"]]
        parts.append(page.table(f"{one.name}: classes", columns, classes))
        parts.append(_notes(result))
    return page.joined(parts)


def _sizes(result: Mapping[str, Any], name: str) -> tuple[Html, Html]:
    per_image, ratio = f"{name}_per_image", f"{name}_over_stream"
    return (
        page.value_and_error(result.get(per_image), result.get(f"{per_image}_standard_error")),
        page.value_and_error(result.get(ratio), result.get(f"{ratio}_standard_error")),
    )


def _side_by_side(caption: str, results: Mapping[str, Mapping[str, Any]]) -> Html:
    """Every number of several results, with its standard error where there is one."""
    rows = [
        (
            name.replace("_", " "),
            *(
                page.value_and_error(values.get(name), values.get(f"{name}_standard_error"))
                for values in results.values()
            ),
        )
        for name in _numbers(results.values())
    ]
    return page.table(caption, ("", *results), rows)


def _notes(result: Mapping[str, Any]) -> Html:
    missing = result.get("not_computed", {})
    texts = [f"{name}: not computed: {why}" for name, why in missing.items()]
    return page.notes([*result["warnings"], *texts])


def _numbers(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics, each once, in order."""
    names = [
        name
        for result in results
        for name, value in result.items()
        if isinstance(value, float) and not name.endswith("_standard_error")
    ]
    return list(dict.fromkeys(names))


KINDS = {
    "metrics": Kind("Distances from real images", distances),
    "likelihood": Kind("Likelihood", likelihood),
    "compression": Kind("Compression", compression),
    "completion": Kind("Completions", completions),
    "video": Kind("Video", videos),
    "longtail": Kind("The long tail", long_tail),
}
