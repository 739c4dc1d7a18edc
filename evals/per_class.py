"""Figures of one model for each class: distance, precision and validity, with errors.

`evals.fid --per_class` writes classes.json next to metrics.json, from the same features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.distances import frechet, kernels, neighbours
from evals.distances.statistics import Statistics
from evals.features.base import FeatureError, FeatureSet
from evals.inputs.codec import GeneratedImages
from evals.inputs.images import Images
from evals.reporting.numbers import share_error
from evals.reporting.results import make_result

MIN_IMAGES = 10  # of a class on each side


def require_classes(generated: Any, references: Any) -> None:
    """Raises FeatureError unless both sides are images, and the references have classes."""
    for side in (generated, references):
        if not isinstance(side, Images):
            raise FeatureError(
                f"{side.name} has only features or statistics; --per_class needs images with labels"
            )
    if not references.label_names:
        raise FeatureError(
            f"{references.name} has no classes; --per_class needs references with classes, such as "
            "one folder of images per class"
        )


def classes(
    generated: Images,
    references: Images,
    ours: FeatureSet,
    theirs: FeatureSet,
    names: Mapping[str, str],
    whole: Mapping[str, Any],
) -> dict[str, Any]:
    """The result `classes`: a row for each class that has enough images on both sides.

    Args:
      generated: with labels; an index into the classes of the references if they have no names.
      references: with classes.
      ours, theirs: their features.
      names: of the metrics, see `metrics.metric_names`.
      whole: the result of all classes together, for its command and settings.
    """
    label_names = references.label_names
    by_class = _indices(generated, ours.keys, label_names)
    of_references = _indices(references, theirs.keys, label_names)
    valid = _validity(generated)
    rows, missing = [], {}
    for name in label_names:
        mine, real = by_class.get(name, []), of_references.get(name, [])
        few = [
            f"{len(found)} {what}"
            for found, what in ((mine, "generated images"), (real, "references"))
            if len(found) < MIN_IMAGES
        ]
        if few:
            missing[name] = f"{' and '.join(few)}, expected at least {MIN_IMAGES}"
            continue
        row = _row(ours.main[mine], theirs.main[real], names)
        row |= _share("valid", [valid[ours.keys[index]] for index in mine] if valid else None)
        rows.append({"label": list(label_names).index(name), "class": name, **row})
    return make_result(
        "classes",
        whole["command"],
        {**whole["settings"], "min_images": MIN_IMAGES},
        {"metric": names["frechet"], "n_classes": len(rows), "classes": rows},
        versions=whole["versions"],
        warnings=_warnings(rows, missing, ours.main.shape[1]),
        not_computed=missing,
    )


def _row(x: np.ndarray, y: np.ndarray, names: Mapping[str, str]) -> dict[str, Any]:
    distance = frechet.frechet_of_features(x, Statistics.of(y))
    kernel = kernels.kid(x, y)
    row: dict[str, Any] = {"n": len(x), "n_references": len(y)}
    for name, found in ((names["frechet"], distance), (names["kernel"], kernel)):
        error = found.standard_error
        row[name] = found.value
        row[f"{name}_standard_error"] = None if math.isnan(error) else error
    precision = neighbours.precision_recall(x, y).precision
    return row | _with_error("precision", precision, len(x))


def _share(name: str, values: Sequence[bool] | None) -> dict[str, Any]:
    if values is None:
        return {name: None, f"{name}_standard_error": None}
    return _with_error(name, sum(values) / len(values), len(values))


def _with_error(name: str, share: float, n: int) -> dict[str, Any]:
    """A share of n images with its standard error."""
    return {name: share, f"{name}_standard_error": share_error(share * n, n)}


def _indices(images: Images, keys: Sequence[str], names: Sequence[str]) -> dict[str, list[int]]:
    """Class -> the rows of its features; images without a class are in none."""
    own = images.label_names or names
    labels = {images.key(number): images.label(number) for number in range(len(images))}
    found: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        if 0 <= labels[key] < len(own):
            found.setdefault(own[labels[key]], []).append(index)
    return found


def _validity(generated: Images) -> dict[str, bool] | None:
    """Whether each document is strictly valid, by key; None for images of no generation job."""
    if not isinstance(generated, GeneratedImages):
        return None
    return {generated.key(number): value for number, value in enumerate(generated.valid)}


def _warnings(
    rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str], dimensions: int
) -> list[str]:
    found = []
    if missing:
        name, reason = next(iter(missing.items()))
        found.append(f"classes with too few images: {len(missing)}; the first is {name}: {reason}")
    few = [row for row in rows if min(row["n"], row["n_references"]) < dimensions]
    if few:
        least = min(min(row["n"], row["n_references"]) for row in few)
        found.append(
            f"classes with fewer images than the {dimensions} dimensions of the features: "
            f"{len(few)}, the smallest with {least}; their Fréchet distances are much too large "
            "and comparable only at equal numbers; kernel distances are unbiased"
        )
    return found


def table(result: Mapping[str, Any], cell: Any) -> str:
    """Formats classes.json for a terminal.

    Args:
      result: its contents.
      cell: (values, name) -> a number with its error.
    """
    columns = [result["metric"], "precision", "valid"]
    lines = [f"{'class':24}{'n':>7}" + "".join(f"{name:>26}" for name in columns)]
    for row in result["classes"]:
        cells = "".join(f"{cell(row, name):>26}" for name in columns)
        lines.append(f"{row['class'][:23]:24}{row['n']:>7}{cells}")
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])
