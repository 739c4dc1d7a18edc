"""The sections of the page: what each kind of result shows, listed in KINDS.

`evals.report` assembles them; `evals.headlines` has the cards on top, `evals.run_sections` the
curves of training runs, `evals.reporting` the building blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.media.images import ImageError
from data_pipelines.media.videos import VideoError, first_frame
from evals import gallery, headlines
from evals.codelength.sizes import TITLES as SIZES
from evals.headlines import HIGHER, Headline
from evals.reporting import comparison, curves, page
from evals.reporting.curves import Line
from evals.reporting.numbers import number, with_error
from evals.reporting.page import (
    Block,
    Cell,
    Chart,
    Charts,
    Clips,
    Column,
    Figure,
    Neighbours,
    Probe,
    Strip,
    Strips,
    Table,
    Tile,
    Tiles,
)
from evals.reporting.results import Evaluation

_FLOOR = "codec floor"
# The three comparisons of an evaluation, and where they are in its result.
_COMPARISONS: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any] | None]] = {
    "model": lambda result: result,
    "model, references coded": lambda result: result.get("against_coded_references"),
    _FLOOR: lambda result: result.get("floor"),
}
_ARROWS = {headlines.LOWER: "↓", HIGHER: "↑"}
_READING = "↓ lower is better; ↑ higher is better"
_SIGN = " ± "
_SHOWN_CLASSES = 30  # tables of more are folded
_DOCUMENTS = {  # counts of `codec`, with their names in a table
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


class Kind(NamedTuple):
    """A kind of result.

    Attributes:
      heading: of its section.
      figures: the figures of the evaluations that have such a result.
      headlines: the cards of one result.
    """

    heading: str
    figures: Callable[[Sequence[Evaluation]], list[Figure]]
    headlines: Callable[[Mapping[str, Any]], list[Headline]] = lambda result: []


def samples(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """Pictures of each evaluation: documents in random order, and their nearest real images."""
    found = []
    read = {one.name: gallery.read(one.folder) for one in evaluations if "metrics" in one.results}
    shown = [one for one in evaluations if read.get(one.name)]
    for one in shown:
        pictures = read[one.name] or {}
        continuations = any(sample.get("continuation") for sample in pictures["samples"])
        documents = "continuations of real images" if continuations else "samples"
        found.append(
            Figure(
                f"{documents.capitalize()}{_of(one, shown)}",
                _pictures(one, pictures, documents),
                [comparison.source(one, "metrics")],
                "; ".join(headlines.sampling(one.results["metrics"])).capitalize(),
            )
        )
    return found


def _pictures(one: Evaluation, pictures: Mapping[str, Any], documents: str) -> list[Block]:
    shown = pictures["samples"]
    tiles = [_sample(one, sample) for sample in shown]
    size = page.tile_size(_path(one, shown[0]["file"]))
    text = f"{len(shown):,} of {pictures['n']:,} {documents}, in random order (seed "
    text += f"{pictures['seed']}), none selected."
    if "valid" in shown[0]:
        marked = sum(not sample["valid"] for sample in shown)
        text += f" {marked} of these are not strictly valid" + (" (marked)." if marked else ".")
    blocks: list[Block] = [Tiles(text, tiles, size)]
    probes = [
        _probe(one, sample, tile)
        for sample, tile in zip(shown, tiles, strict=True)
        if "nearest" in sample
    ]
    if probes:
        text = (
            f"Nearest real images: the first {len(probes)} of these, each with its "
            f"{len(probes[0].nearest)} nearest of {pictures['n_references']:,} "
            f"({pictures['references']}) and the distances of their features "
            f"({pictures['features']}). Authenticity {_percent(pictures['authenticity'])}: the "
            f"share of all {documents} that are farther from their nearest real image than that "
            f"image is from its own nearest one (“real to real”). Copies give 0, "
            "images of the same distribution about a half."
        )
        blocks.append(Neighbours(text, probes, size))
    return blocks


def _sample(one: Evaluation, sample: Mapping[str, Any]) -> Tile:
    mark = "" if sample.get("valid", True) else "invalid"
    parts = ["Continuation" if sample.get("continuation") else "Sample", sample["key"]]
    if sample.get("label") is not None:
        parts.append(f"with label {sample['label']}")
    alt = " ".join(parts) + (f", {mark}" if mark else "")
    return Tile(page.tile_source(_path(one, sample["file"])), alt, "", mark)


def _probe(one: Evaluation, sample: Mapping[str, Any], tile: Tile) -> Probe:
    nearest = [
        Tile(
            page.tile_source(_path(one, each["file"])) if each["file"] else "",
            f"Real image {each['key']}, number {rank} in distance",
            f"{each['distance']:.3g}",
        )
        for rank, each in enumerate(sample["nearest"], 1)
    ]
    caption = "continuation" if sample.get("continuation") else "sample"
    text = f"real to real: {sample['nearest_to_each_other']:.3g}"
    return Probe(Tile(tile.src, tile.alt, caption, tile.mark), nearest, text)


def _path(one: Evaluation, name: str) -> Any:
    return one.file(f"{gallery.FOLDER}/{name}")


def distances(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """metrics.json of `evals.fid`: the three comparisons, and counts of the documents."""
    return [_compared(evaluations, "metrics", "Distances from real images")]


def clip_scores(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """clip_score.json: how well images match their captions."""
    return [_compared(evaluations, "clip_score", "Images and their captions")]


def _compared(evaluations: Sequence[Evaluation], kind: str, title: str) -> Figure:
    """The metrics of all evaluations in one table, and the counts of their documents."""
    notes = comparison.differences(evaluations, kind)
    results = [one.results[kind] for one in evaluations]
    names = [one.name for one in evaluations]
    if len(evaluations) == 1:
        found = {name: get(results[0]) for name, get in _COMPARISONS.items()}
        columns = {Column(name): values for name, values in found.items() if values}
        blocks: list[Block] = [_metrics(_READING, columns)]
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
        blocks = [_metrics(_READING, {**models, **floors})]
        blocks += [
            _metrics(f"The same: {name}; {_READING}", columns, folded=True)
            for name, columns in others.items()
            if columns
        ]
    counts = _counts(evaluations, kind, notes)
    if counts.rows:
        blocks.append(counts)
    text = "; ".join(
        dict.fromkeys(", ".join(headlines.sides(one.results[kind])) for one in evaluations)
    )
    return _figure(evaluations, kind, title, blocks, text)


def _metrics(
    caption: str, columns: Mapping[Column, Mapping[str, Any]], *, folded: bool = False
) -> Table:
    """A table of all metrics of several results, with their standard errors."""
    rows = [
        (
            f"{headlines.title(name)} {_ARROWS[headlines.better(name)]}",
            [_value(found, name) for found in columns.values()],
        )
        for name in headlines.metric_names(list(columns.values()))
    ]
    return Table(caption, list(columns), rows, folded)


def _value(found: Mapping[str, Any], name: str) -> Cell:
    return Cell(with_error(found.get(name), found.get(f"{name}_standard_error"), _SIGN))


def _counts(evaluations: Sequence[Evaluation], kind: str, notes: Sequence[str]) -> Table:
    codecs = [one.results[kind].get("codec") or {} for one in evaluations]
    rows = []
    for name, text in _DOCUMENTS.items():
        if name == "other_than_manifest" and not any(codec.get(name) for codec in codecs):
            continue
        if any(codec.get(name) is not None for codec in codecs):
            rows.append((text, [_count(codec, name) for codec in codecs]))
    columns = [Column(one.name, note) for one, note in zip(evaluations, notes, strict=True)]
    return Table("Generated documents", columns, rows)


def _count(codec: Mapping[str, Any], name: str) -> Cell:
    count, total = codec.get(name), codec.get("requested")
    if count is None:
        return Cell("-")
    of_requested = name in ("strictly_valid", "salvaged", "failed") and total
    return Cell(f"{count:,}" + (f" ({_percent(count / total)})" if of_requested else ""))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def likelihood(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """likelihood.json: bits of the model and of the codec's stream."""
    kind = "likelihood"
    notes = comparison.differences(evaluations, kind)
    columns = [Column(one.name, note) for one, note in zip(evaluations, notes, strict=True)]
    results = [one.results[kind] for one in evaluations]
    names = [
        ("bits_per_image", "Bits per image ↓"),
        ("bits_per_byte", "Bits per byte of the codec's stream ↓"),
        ("bits_per_pixel", "Bits per pixel ↓"),
        ("bits_per_dimension", "Bits per dimension ↓"),
        ("bits_per_token", "Bits per token ↓"),
        ("stream_bits_per_image", "Codec's stream, bits per image"),
        ("psnr_db", "PSNR of the codec, dB ↑"),
    ]
    rows = [
        (text, [_value(result, name) for result in results])
        for name, text in names
        if any(result.get(name) is not None for result in results)
    ]
    texts = []
    for one in evaluations:
        of = one.results[kind]["settings"]
        count = f"{one.results[kind]['n_images']:,} documents"
        texts.append(f"{count} ({of['images_are']}), label: {of['label']}")
    table = Table(_READING, columns, rows)
    text = "; ".join(dict.fromkeys(texts))
    return [_figure(evaluations, kind, "Likelihood of real images", [table], text)]


def compression(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """compression.json: bytes per image under the model and under other codes."""
    kind = "compression"
    notes = comparison.differences(evaluations, kind)
    results = [one.results[kind] for one in evaluations]
    names = [name for name in SIZES if any(f"{name}_per_image" in result for result in results)]
    largest = max(
        (result.get(f"{name}_per_image") or 0 for result in results for name in names), default=0
    )
    columns = []
    for one, note in zip(evaluations, notes, strict=True):
        prefix = f"{one.name}: " if len(evaluations) > 1 else ""
        columns += [
            Column(f"{prefix}bytes per image ↓", note),
            Column(f"{prefix}share of the stream ↓"),
        ]
    rows = [
        (SIZES[name], [cell for result in results for cell in _size(result, name, largest)])
        for name in names
    ]
    table = Table("Size of the same documents under several codes", columns, rows)
    title = "The model as a compressor"
    return [_figure(evaluations, kind, title, [table])]


def _size(result: Mapping[str, Any], name: str, largest: float) -> tuple[Cell, Cell]:
    per_image, ratio = f"{name}_per_image", f"{name}_over_stream"
    value, share = result.get(per_image), result.get(ratio)
    if value is None or share is None:
        return Cell("-"), Cell("-")
    text = with_error(value, result.get(f"{per_image}_standard_error"), _SIGN)
    error = result.get(f"{ratio}_standard_error")
    percent = with_error(100 * share, 100 * error if error else None, _SIGN)
    return Cell(text, share=value / largest), Cell(f"{percent}\u00a0%")


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
        rows.append((_DOCUMENTS[name], [_count(own, name) for own in sums]))
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
    title = f"Completions of real images{_of(one, evaluations)}"
    text = "; ".join(
        [
            f"{result['n_generated']:,} continuations for each of {len(seeds)} seeds; mean "
            "over the seeds with its standard error",
            *headlines.sampling(result),
        ]
    )
    figure = _figure([one], "completion", title, blocks, text)
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
    return Cell(with_error(cell["value"], cell["standard_error"], _SIGN))


def videos(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """video.json: distances, counts of documents, quality by frame, and clips."""
    found = [_compared(evaluations, "video", "Distances from real clips")]
    for one in evaluations:
        result = one.results["video"]
        continued = result.get("continuations")
        blocks: list[Block] = []
        if continued:
            blocks.append(Charts(_by_frame(continued)))
        what = "Continuations of real clips" if _are_continuations(result) else "Sampled clips"
        shown, missing = [], []
        for number_, name in enumerate(result["videos"], 1):
            path = one.file(name)
            try:
                text = f"{what} of {one.name}, number {number_}"
                shown.append(page.clip(path, text, first_frame(path.read_bytes())))
            except (VideoError, OSError) as error:
                missing.append(f"{name}: {error}")
        if shown:
            layout = "original, prompt and continuations next to each other"
            caption = f"{len(shown)} clip{'s' * (len(shown) > 1)}" + (
                f": {layout}" if _are_continuations(result) else ""
            )
            blocks.append(Clips(caption, shown))
        if not blocks and not missing:
            continue
        text = ""
        if continued:
            text = f"Means over {continued['n']:,} continued clips, frames of the prompt included"
        figure = Figure(
            f"{what}{_of(one, evaluations)}",
            blocks,
            [comparison.source(one, "video")],
            text,
            missing,
        )
        found.append(figure)
    return found


def _are_continuations(result: Mapping[str, Any]) -> bool:
    return result["settings"].get("documents") == "continuations" or "continuations" in result


def _by_frame(found: Mapping[str, Any]) -> list[Chart]:
    charts = []
    for metric, title in (("psnr_db", "PSNR, dB"), ("ssim", "SSIM")):
        frames = list(range(1, len(found[metric]) + 1))
        series = {
            "continuation": Line(frames, found[metric]),
            "codec alone": Line(frames, found[f"floor_{metric}"], colour=1, dashed=True),
        }
        charts.append(curves.lines(series, title, "frame"))
    return charts


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
                        _value(row, name),
                        share=max(row[name], 0) / largest if name == metric and largest else None,
                    )
                    for name in names
                ),
                Cell(f"{row['n']:,} / {row['n_references']:,}"),
            ],
        )
        for row in sorted(rows, key=lambda row: row[metric], reverse=True)
    ]
    columns = [
        Column(f"{headlines.title(name)} {_ARROWS[headlines.better(name)]}") for name in names
    ]
    columns.append(Column("images", "generated / real"))
    caption = f"Every class, largest {headlines.title(metric)} first"
    table = Table(caption, columns, lines, folded=len(lines) > _SHOWN_CLASSES)
    title = f"Classes{_of(one, evaluations)}"
    text = f"{len(rows):,} classes, {', '.join(headlines.sides(result))}"
    return _figure([one], "classes", title, [table], text)


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
        title = f"Difference of two models by class{_of(one, evaluations)}"
        text = "A positive correlation: a is better where classes are rare"
        found.append(_figure([one], "longtail", title, blocks, text))
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
    table = Table(_READING, columns, rows)
    counts = dict.fromkeys(f"{result['requested']:,} documents" for result in results)
    text = f"{'; '.join(counts)}, of which those that show nothing count as not recognised"
    return [_figure(evaluations, "digits", "Generated digits", [table], text)]


def _share(result: Mapping[str, Any], name: str) -> Cell:
    """A share with its error, in percent."""
    if name not in result:
        return Cell("-")
    error = result.get(f"{name}_standard_error")
    return Cell(f"{with_error(100 * result[name], error and 100 * error, _SIGN)}\u00a0%")


def _figure(
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


def _of(one: Evaluation, evaluations: Sequence[Evaluation]) -> str:
    return f" of {one.name}" if len(evaluations) > 1 else ""


KINDS = {
    "metrics": Kind("Distances", distances, headlines.of_metrics),
    "classes": Kind("Classes", by_class),
    "digits": Kind("Digits", digits, headlines.of_digits),
    "clip_score": Kind("CLIP score", clip_scores, headlines.of_clip_score),
    "likelihood": Kind("Likelihood", likelihood, headlines.of_likelihood),
    "compression": Kind("Compression", compression),
    "completion": Kind("Completions", completions, headlines.of_completion),
    "video": Kind("Video", videos, headlines.of_video),
    "longtail": Kind("The long tail", long_tail),
}
