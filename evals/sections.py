"""The sections of the report: one function for each kind of result, listed in KINDS.

`evals.report` assembles them; the building blocks are in `evals.reporting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from data_pipelines.media.images import ImageError
from evals.codelength.sizes import TITLES
from evals.reporting import curves, page
from evals.reporting.page import Html
from evals.reporting.results import Evaluation

# The three comparisons of an evaluation, and where they are in its result.
_COMPARISONS = {
    "generated": lambda result: result,
    "generated, references coded": lambda result: result.get("against_coded_references"),
    "floor: references coded": lambda result: result.get("floor"),
}


class Kind(NamedTuple):
    """A kind of result: its heading in the report, and the function that renders its section."""

    heading: str
    render: Callable[[Sequence[Evaluation], epath.PathLike], Html]


def distances(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """metrics.json of `evals.fid`: the three comparisons, and counts of the documents."""
    columns: dict[str, Mapping[str, Any]] = {}
    for one in evaluations:
        for name, get in _COMPARISONS.items():
            values = get(one.results["metrics"])
            if values:
                columns[f"{one.name}: {name}" if len(evaluations) > 1 else name] = values
    parts = [_side_by_side("Distances", columns)]
    counts = [
        ("generated images", *(one.results["metrics"].get("n_generated") for one in evaluations)),
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
    """likelihood.json: bits of the model and of the codec's stream."""
    results = {one.name: one.results["likelihood"] for one in evaluations}
    parts = [_side_by_side("Bits of the evaluated images", results)]
    for one in evaluations:
        result = one.results["likelihood"]
        parts.append(page.element("p", f"{one.name}: {result['n_images']:,} images."))
        parts.append(_notes(result))
    return page.joined(parts)


def compression(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """compression.json: bytes per image under the model and under other codes."""
    results = [one.results["compression"] for one in evaluations]
    names = [name for name in TITLES if any(f"{name}_per_image" in result for result in results)]
    header = [
        title
        for one in evaluations
        for title in (f"{one.name}: bytes per image", "share of the modelled stream")
    ]
    rows = [
        (TITLES[name], *(cell for result in results for cell in _sizes(result, name)))
        for name in names
    ]
    parts = [page.table("Size of the same images", ("", *header), rows)]
    parts += [_notes(result) for result in results]
    return page.joined(parts)


def completions(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """completion.json: the paper's table with the codec floor, and grids of completions."""
    parts = []
    for one in evaluations:
        result = one.results["completion"]
        columns = list(result["grids"])
        rows = [
            (row, *(_cell(cells.get(column)) for column in columns))
            for row, cells in result["table"].items()
        ]
        codecs_by_column = [
            [each["metrics"]["codec"] for each in result["completions"] if each["column"] == name]
            for name in columns
        ]
        for name in ("requested", "strictly_valid", "salvaged", "failed"):
            counts = [sum(codec[name] for codec in codecs) for codecs in codecs_by_column]
            rows.append((name.replace("_", " "), *counts))
        metric = result["metric"].replace("_", " ")
        header = [f"prompt {column}" if column[:1].isdigit() else column for column in columns]
        parts.append(page.table(f"{one.name}: {metric} of completed images", ("", *header), rows))
        parts.append(_notes(result))
        for title, name in zip(header, result["grids"].values(), strict=True):
            text = f"Originals, prompts and completions of {one.name}, {title}"
            caption = f"{title}: original, prompt, completions."
            try:
                parts.append(page.picture(one.file(name), text, caption))
            except (ImageError, OSError) as error:
                parts.append(page.notes([f"{name}: {error}"]))
    return page.joined(parts)


def _cell(cell: Mapping[str, Any] | None) -> Html:
    if cell is None:
        return page.escape(None)
    return page.value_and_error(cell["value"], cell["standard_error"])


def videos(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """video.json: distances, counts of documents, quality by frame, and sample clips."""
    columns: dict[str, Mapping[str, Any]] = {}
    for one in evaluations:
        for name, get in _COMPARISONS.items():
            values = get(one.results["video"])
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
        clips = [
            page.video(one.file(name), f"Clip {number} of {one.name}")
            for number, name in enumerate(result["videos"], 1)
        ]
        parts.append(page.side_by_side(clips))
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
    """longtail.json: the difference of two models by class against the class frequency."""
    parts = []
    for one in evaluations:
        result = one.results["longtail"]
        parts.append(long_tail_plot(result))
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
        parts.append(
            page.table(f"{one.name}: correlation of difference and frequency", header, rows)
        )
        columns = ("class", "frequency", "n", "a", "b", "difference")
        classes = [[row[column] for column in columns] for row in result["classes"]]
        parts.append(page.table(f"{one.name}: classes", columns, classes))
        parts.append(_notes(result))
    return page.joined(parts)


def long_tail_plot(result: Mapping[str, Any]) -> Html:
    """The difference of each class against its frequency, of longtail.json."""
    rows = result["classes"]
    points = ([row["frequency"] for row in rows], [row["difference"] for row in rows])
    correlation = "no correlation can be computed"
    if result["spearman"] is not None:
        correlation = f"Spearman {result['spearman']:.2f}, p = {result['spearman_p_value']:.2g}"
    title = f"Difference of the two models by class: {correlation}"
    metric = result["metric"].replace("_", " ")
    text = f"{len(rows)} classes; {metric} of a minus that of b against frequency. {correlation}."
    positive = all(frequency > 0 for frequency in points[0])
    return curves.scatter(
        {"classes": points},
        title,
        "frequency of the class",
        f"{metric}, a - b",
        text,
        log_x=positive,
    )


def _sizes(result: Mapping[str, Any], name: str) -> tuple[Html, Html]:
    per_image, ratio = f"{name}_per_image", f"{name}_over_stream"
    return (
        page.value_and_error(result.get(per_image), result.get(f"{per_image}_standard_error")),
        page.value_and_error(result.get(ratio), result.get(f"{ratio}_standard_error")),
    )


def _side_by_side(caption: str, results: Mapping[str, Mapping[str, Any]]) -> Html:
    """A table of all metrics of several results, with their standard errors."""
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
    texts = [f"{name}: not computed: {reason}" for name, reason in missing.items()]
    return page.notes([*result["warnings"], *texts])


def _numbers(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics, in order, without duplicates."""
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
