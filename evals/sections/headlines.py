"""The headlines of the page: the main figures of each kind of result, as cards.

`evals.report` puts them on top; everything else is in the other sections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from evals.reporting import comparison
from evals.reporting.numbers import PLUS_MINUS, counted, number, rounded, share_error, with_error
from evals.reporting.page import Card, Entry
from evals.reporting.results import Evaluation

LOWER, HIGHER = "lower", "higher"

# Printed names of metrics, and those of which more is better.
TITLES = {
    "fid": "FID",
    "fid_infinity": "FID, extrapolated",
    "sfid": "sFID",
    "kid": "KID",
    "fvd": "FVD",
    "frame_fid": "FID of frames",
    "inception_score": "Inception score",
    "frechet_distance": "Fréchet distance",
    "frechet_distance_infinity": "Fréchet distance, extrapolated",
    "spatial_frechet_distance": "Fréchet distance, spatial",
    "pooled_frechet_distance": "Fréchet distance, pooled",
    "frame_frechet_distance": "Fréchet distance of frames",
    "kernel_distance": "Kernel distance",
    "classifier_score": "Classifier score",
    "mmd_gaussian": "MMD, Gaussian kernel",
    "psnr_db": "PSNR, dB",
    "clip_score": "CLIP score",
    "cmmd": "CMMD",
}
_HIGHER_IS_BETTER = frozenset(
    {
        *("inception_score", "classifier_score", "clip_score", "psnr_db"),
        *("precision", "recall", "density", "coverage", "valid"),
    }
)


class Headline(NamedTuple):
    """A main figure of one result.

    Attributes:
      measure: the title of its card; figures of the same measure share one.
      better: LOWER or HIGHER.
      value, error: the figure and its standard error, if known.
      below: lines under the figure.
      percent: whether the figure is a share, printed in percent.
    """

    measure: str
    better: str
    value: float
    error: float | None
    below: Sequence[str]
    percent: bool = False


def title(name: str) -> str:
    """The printed name of a metric."""
    text = name.replace("_", " ")
    return TITLES.get(name, text[:1].upper() + text[1:])


def better(name: str) -> str:
    """Whether lower or higher values of a metric are better."""
    return HIGHER if name in _HIGHER_IS_BETTER else LOWER


def arrow(name: str) -> str:
    """The same as an arrow."""
    return "↑" if better(name) == HIGHER else "↓"


def main_metric(result: Mapping[str, Any]) -> str | None:
    """The first metric of a result: the Fréchet distance, if there is one."""
    return next((name for name in metric_names([result])), None)


def metric_names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics of several results, in order, without their errors."""
    names = [
        name
        for result in results
        for name, value in result.items()
        if isinstance(value, float) and not name.endswith("_standard_error")
    ]
    return list(dict.fromkeys(names))


def sides(result: Mapping[str, Any]) -> list[str]:
    """How many images are compared with how many, and by which features: a line or two."""
    settings = comparison.settings_of(result)
    names = {"n_generated": settings.get("documents") or "generated", "n_references": "references"}
    counts = [counted(settings[name], what) for name, what in names.items() if name in settings]
    lines = [", ".join(counts)]
    if settings.get("network"):
        dimensions = settings.get("dimensions")
        of = f", {dimensions:,} dimensions" if dimensions else ""
        lines.append(f"features: {settings['network']}{of}")
    return lines


def sampling(result: Mapping[str, Any]) -> list[str]:
    """How the documents were sampled: a line, or none if it is not known."""
    settings = comparison.settings_of(result)
    if settings.get("temperature") is None:
        return []
    parts = [f"temperature {settings['temperature']:g}"]
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "guidance": 1.0}
    parts += [
        f"{comparison.title(name)} {settings[name]:g}"
        for name, value in neutral.items()
        if settings.get(name) not in (None, value)
    ]
    if settings.get("constrained"):
        parts.append("constrained")
    if settings.get("label") == "given":
        parts.append("label given")
    return [", ".join(parts)]


def of_metrics(result: Mapping[str, Any]) -> list[Headline]:
    """The Fréchet distance with the codec floor, and the share of valid documents."""
    found = []
    name = main_metric(result)
    if name is not None:
        below = [*_floor(result, name), *sides(result), *sampling(result)]
        found.append(
            Headline(
                title(name), better(name), result[name], result.get(f"{name}_standard_error"), below
            )
        )
    return found + _validity(result)


def of_clip_score(result: Mapping[str, Any]) -> list[Headline]:
    """The CLIP score."""
    below = [
        f"{result['n_generated']:,} images, {result['n_captions']:,} captions",
        *sampling(result),
    ]
    error = result.get("clip_score_standard_error")
    return [Headline(title("clip_score"), HIGHER, result["clip_score"], error, below)]


def _floor(result: Mapping[str, Any], name: str) -> list[str]:
    floor = result.get("floor") or {}
    if floor.get(name) is None:
        return []
    error = floor.get(f"{name}_standard_error")
    return [f"codec floor {with_error(floor[name], error, PLUS_MINUS)}"]


def _validity(result: Mapping[str, Any]) -> list[Headline]:
    codec = result.get("codec")
    if not codec:
        return []
    valid, requested = codec["strictly_valid"], codec["requested"]
    settings = comparison.settings_of(result)
    documents = settings.get("documents") or "documents"
    below = [f"{valid:,} of {requested:,} {documents}", *sampling(result)]
    if settings.get("validity"):
        below.append(f"judged from {settings['validity']}")
    error = share_error(valid, requested)
    return [Headline("Strictly valid", HIGHER, valid / requested, error, below, percent=True)]


def of_likelihood(result: Mapping[str, Any]) -> list[Headline]:
    """Bits per image, and what the codec takes."""
    settings = comparison.settings_of(result)
    below = []
    if result.get("stream_bits_per_image") is not None:
        below.append(f"{number(result['stream_bits_per_image'])} in the codec's stream")
    below.append(f"{result['n_images']:,} documents, {settings['images_are']}")
    below.append(f"label: {settings['label']}")
    error = result.get("bits_per_image_standard_error")
    return [Headline("Bits per image", LOWER, result["bits_per_image"], error, below)]


def of_completion(result: Mapping[str, Any]) -> list[Headline]:
    """The distance of completions of the prompt nearest to half an image, with the floor."""
    columns = [name for name in result["grids"] if name[:1].isdigit()]
    if not columns:
        return []
    column = min(columns, key=lambda name: abs(_leading(name) - 0.5))
    cell = result["table"]["model"].get(column)
    if cell is None:
        return []
    below = []
    floor = result["table"].get("floor: references through the codec", {}).get(column)
    if floor:
        value = with_error(floor["value"], floor["standard_error"], PLUS_MINUS)
        below.append(f"codec floor {value}")
    below += [
        f"prompt {column}; {len(cell['seeds'])} seeds of {result['n_generated']:,} continuations",
        *sampling(result),
    ]
    measure = f"{title(result['metric'])} of completions"
    return [Headline(measure, LOWER, cell["value"], cell["standard_error"], below)]


def _leading(text: str) -> float:
    """The number that a column's name begins with."""
    digits = text.split()[0].rstrip("%")
    try:
        return float(digits)
    except ValueError:
        return 0.5


def of_video(result: Mapping[str, Any]) -> list[Headline]:
    """The Fréchet distance of clips with the codec floor, and the share of valid documents."""
    return of_metrics(result)


def of_digits(result: Mapping[str, Any]) -> list[Headline]:
    """The share of digits that a classifier recognises, and that of real digits."""
    requested = result["requested"]
    below = [
        f"{number(100 * result['classifier_accuracy'])}\u00a0% of real digits",
        f"{requested:,} {result['settings'].get('documents') or 'documents'}",
        *sampling(result),
    ]
    error = share_error(round(result["recognised"] * requested), requested)
    name = "Recognised as the label"
    return [Headline(name, HIGHER, result["recognised"], error, below, percent=True)]


def cards(
    evaluations: Sequence[Evaluation],
    kinds: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], list[Headline]]]],
) -> list[Card]:
    """The cards of all evaluations.

    Args:
      evaluations: in the order of the page.
      kinds: kind of result -> (anchor of its section, function that returns its headlines).
    """
    found = []
    for kind, (anchor, headlines) in kinds.items():
        grouped: dict[str, list[tuple[Evaluation, Headline]]] = {}
        for one in evaluations:
            for headline in headlines(one.results[kind]) if kind in one.results else ():
                grouped.setdefault(headline.measure, []).append((one, headline))
        found += [_card(kind, anchor, measure, own) for measure, own in grouped.items()]
    return found


def _card(kind: str, anchor: str, measure: str, own: Sequence[tuple[Evaluation, Headline]]) -> Card:
    differs = comparison.differences([one for one, _ in own], kind)
    rows = [(one, headline, text) for (one, headline), text in zip(own, differs, strict=True)]
    comparable = not any(differs)
    direction = own[0][1].better
    if comparable:
        rows.sort(key=lambda row: row[1].value, reverse=direction == HIGHER)
    entries = [
        Entry(one.name if len(own) > 1 else "", *_texts(headline), headline.below, text)
        for one, headline, text in rows
    ]
    return Card(measure, direction, anchor, entries, comparable)


def _texts(headline: Headline) -> tuple[str, str]:
    """The figure and its error as text."""
    factor, unit = (100.0, "\u00a0%") if headline.percent else (1.0, "")
    value, error = factor * headline.value, headline.error
    if error is None or not math.isfinite(error) or error <= 0:
        return number(value) + unit, ""
    text, of_error, exponent = rounded(value, factor * error)
    power = f"e{exponent}" if exponent else ""
    return text + power, of_error + power + unit
