"""Example: python -m evals.longtail --a=SAMPLES_A --b=SAMPLES_B --references=folder:PHOTOS \\
    --frequencies=classes.csv --out=longtail --weights=pt_inception-2015-12-05-6726825d.pth

Does one model render rare things better than another? For every class the distance of each
model's images from real ones; the difference of the two, a - b, against how frequent the class is
in the world (JPEG-LM, arXiv 2408.08459, section 6). A positive correlation: a gains where classes
are rare. Writes longtail.json and longtail.svg.

The other half of that section, small elements, is `evals.completion --half_size`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from etils import epath

from data_pipelines import representations
from data_pipelines.representations.base import CONFIG_FILE
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals import metrics
from evals.distances import correlation, kernels
from evals.distances.frechet import frechet
from evals.distances.statistics import Statistics
from evals.features import extractors, features
from evals.features.features import Extractor
from evals.inputs.codec import MANIFEST, GeneratedImages
from evals.inputs.images import FittedImages, Images, open_images
from evals.likelihood import write_json
from evals.reporting import curves
from evals.reporting.page import Html
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

FREQUENCY = "frequency of the class"


class TableError(ValueError):
    """A table of frequencies that cannot be read."""


class Classed(NamedTuple):
    """Features of a set of images by the name of their class.

    Attributes:
      features: of the images that have a class, float [n, d] each.
      unlabelled: images without one.
      found: everything else that is known of the set.
    """

    features: Mapping[str, np.ndarray]
    unlabelled: int
    found: features.FeatureSet


def longtail(
    a: str,
    b: str,
    references: str,
    frequencies: Mapping[str, float],
    out: epath.PathLike,
    *,
    extractor: Extractor,
    least: int = 10,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Compares two models class by class, and writes longtail.json and longtail.svg to a folder.

    Args:
      a, b: folders that `jpeglm_jax.generate` wrote with labels, or images in a folder a class.
      references: real images with classes; labels of a and b are theirs.
      frequencies: of each class, by name.
      out: folder to write.
      extractor: what to look with.
      least: images that a class needs on each side.
      batch_size: images that are looked at together.

    Returns:
      What is in longtail.json.

    Raises:
      ValueError: no classes, or too few that all sides and the table have.
    """
    out = epath.Path(out)
    real = open_images(references)
    names = real.label_names
    if not names:
        raise ValueError(f"{references} has no classes; expected a folder of images for each")
    sides = {"a": _generated(a), "b": _generated(b), "references": _as_seen(real, a)}
    classed = {
        side: _classed(images, names, extractor, out / side, batch_size)
        for side, images in sides.items()
    }
    rows, left_out = _rows(classed, frequencies, least)
    if len(rows) < correlation.LEAST:
        told = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        raise ValueError(
            f"{len(rows)} classes have what is needed, expected at least {correlation.LEAST}"
            + (f" ({told})" if told else "")
        )
    called = metrics.names(classed["a"].found.about)["frechet"]
    result = {
        "metric": called,
        **_correlations(rows),
        "n_classes": len(rows),
        "n_a": sum(row["n"] for row in rows),
        "n_references": sum(row["n_references"] for row in rows),
        "classes": rows,
        "not_computed": left_out,
        "warnings": _warnings(classed, left_out),
        "rejected": {
            side: [list(pair) for pair in one.found.rejected] for side, one in classed.items()
        },
        "settings": {
            "features": {side: dict(one.found.about) for side, one in classed.items()},
            "least": least,
        },
        "versions": checkpoint.versions(),
        "plot": "longtail.svg",
    }
    out.mkdir(parents=True, exist_ok=True)
    curves.save(plot(result), out / "longtail.svg")
    write_json(out / "longtail.json", result)
    return result


def read_frequencies(path: epath.PathLike) -> dict[str, float]:
    """A CSV table of two columns, class and frequency; a first line of other names is a header.

    Raises TableError that names the line.
    """
    path, result = epath.Path(path), {}
    if not path.is_file():
        raise TableError(f"there is no file {path}; expected a table: class, frequency")
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} is no CSV table: {error}") from error
    for number, cells in enumerate(lines, 1):
        if not cells:
            continue
        place = f"{path}, line {number}"
        if len(cells) != 2:
            raise TableError(f"{place} has {len(cells)} columns, expected class, frequency")
        name, text = cells[0].strip(), cells[1].strip()
        try:
            frequency = float(text)
        except ValueError:
            if number == 1:
                continue  # the header
            raise TableError(f"{place}: found frequency {text!r}, expected a number") from None
        if not math.isfinite(frequency) or frequency < 0:
            raise TableError(f"{place}: found frequency {text}, expected 0 or more")
        if name in result:
            raise TableError(f"{place}: the class {name!r} is there twice")
        result[name] = frequency
    if not result:
        raise TableError(f"{path} holds no class; expected lines of class, frequency")
    return result


def _generated(where: str) -> Images:
    folder = epath.Path(where)
    if ":" not in where and (folder / MANIFEST).is_file():
        known = (folder / CONFIG_FILE).is_file()
        return GeneratedImages(folder, representations.load(folder) if known else None)
    return open_images(where)


def _as_seen(real: Images, generated: str) -> Images:
    """References cut and resized as the model's training images were, where that is known."""
    if ":" in generated or not (epath.Path(generated) / CONFIG_FILE).is_file():
        return real
    if "decoded_from" in real.about:
        return real
    return FittedImages(real, representations.load(generated), coded=False)


def _classed(
    images: Images,
    names: Sequence[str],
    extractor: Extractor,
    folder: epath.Path,
    batch_size: int,
) -> Classed:
    found = features.extract(images, extractor, folder, batch_size=batch_size)
    own = images.label_names or names  # generated labels are numbers alone
    labels = {images.key(number): images.label(number) for number in range(len(images))}
    places: dict[str, list[int]] = {}
    unlabelled = 0
    for place, key in enumerate(found.keys):
        label = labels[key]
        if 0 <= label < len(own):
            places.setdefault(own[label], []).append(place)
        else:
            unlabelled += 1
    return Classed({name: found.main[at] for name, at in places.items()}, unlabelled, found)


def _rows(
    classed: Mapping[str, Classed], frequencies: Mapping[str, float], least: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A line for each class, and the classes that are left out, each with the reason."""
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name in sorted(set().union(*(one.features for one in classed.values()))):
        if name not in frequencies:
            left_out[name] = "the table has no frequency of it"
            continue
        counts = {side: len(one.features.get(name, ())) for side, one in classed.items()}
        few = [f"{count} images of {side}" for side, count in counts.items() if count < least]
        if few:
            left_out[name] = f"{' and '.join(few)}, expected at least {least}"
            continue
        rows.append(_row(name, frequencies[name], classed))
    return rows, left_out


def _row(name: str, frequency: float, classed: Mapping[str, Classed]) -> dict[str, Any]:
    ours, theirs, real = (classed[side].features[name] for side in ("a", "b", "references"))
    # The distance is too large by about a constant over n: both models get the same n.
    n = min(len(ours), len(theirs))
    ours, theirs = ours[:n], theirs[:n]
    references = Statistics.of(real)
    a, b = (frechet(Statistics.of(one), references) for one in (ours, theirs))
    kernel_a, kernel_b = (kernels.kid(one, real).value for one in (ours, theirs))
    return {
        "class": name,
        "frequency": frequency,
        "n": n,
        "n_references": len(real),
        "a": a,
        "b": b,
        "difference": a - b,
        "kernel_a": kernel_a,
        "kernel_b": kernel_b,
        "kernel_difference": kernel_a - kernel_b,
    }


def _correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Coefficients and p-values of both distances; None where all classes have one frequency."""
    frequency = np.array([row["frequency"] for row in rows])
    result: dict[str, float | None] = {}
    for prefix, column in (("", "difference"), ("kernel_", "kernel_difference")):
        difference = np.array([row[column] for row in rows])
        found = {
            "spearman": correlation.spearman(frequency, difference),
            "pearson": correlation.pearson(frequency, difference),
        }
        if (frequency > 0).all():
            found["pearson_log"] = correlation.pearson(np.log10(frequency), difference)
        for name, value in found.items():
            for key, number in ((name, value.value), (f"{name}_p_value", value.p_value)):
                result[prefix + key] = None if math.isnan(number) else number
    return result


def _warnings(classed: Mapping[str, Classed], left_out: Mapping[str, str]) -> list[str]:
    warnings = []
    if left_out:
        name, why = next(iter(left_out.items()))
        warnings.append(f"{len(left_out)} classes are left out, the first is {name}: {why}")
    for side, one in classed.items():
        if one.unlabelled:
            warnings.append(f"{one.unlabelled} images of {side} have no class and do not count")
        if one.found.rejected:
            name, why = one.found.rejected[0]
            warnings.append(
                f"{len(one.found.rejected)} files of {side} are no readable images, the first is "
                f"{name}: {why}"
            )
    smallest = min(len(part) for one in classed.values() for part in one.features.values())
    dimensions = classed["references"].found.main.shape[1]
    if smallest <= dimensions:
        warnings.append(
            f"classes have as few as {smallest} images for {dimensions} dimensions: distances are "
            "much too large, by an amount that depends on the model; kernel distances are not"
        )
    return warnings


def plot(result: Mapping[str, Any]) -> Html:
    """The difference of each class against its frequency."""
    rows = result["classes"]
    points = ([row["frequency"] for row in rows], [row["difference"] for row in rows])
    spearman, p_value = result["spearman"], result["spearman_p_value"]
    told = "no correlation can be computed"
    if spearman is not None:
        told = f"Spearman {spearman:.2f}, p = {p_value:.2g}"
    title = f"Difference of the two models by class: {told}"
    name = result["metric"].replace("_", " ")
    text = f"{len(rows)} classes; {name} of a less that of b against frequency. {told}."
    positive = all(frequency > 0 for frequency in points[0])
    return curves.scatter(
        {"classes": points}, title, FREQUENCY, f"{name}, a - b", text, log_x=positive
    )


def table(result: Mapping[str, Any]) -> str:
    """longtail.json for a terminal."""
    lines = [f"{'class':24}{'frequency':>14}{'n':>7}{'a':>12}{'b':>12}{'a - b':>12}"]
    for row in sorted(result["classes"], key=lambda row: row["frequency"]):
        lines.append(
            f"{row['class'][:23]:24}{row['frequency']:>14,.6g}{row['n']:>7}{row['a']:>12.3f}"
            f"{row['b']:>12.3f}{row['difference']:>12.3f}"
        )
    for name in ("spearman", "pearson", "pearson_log"):
        for prefix, what in (("", result["metric"]), ("kernel_", "kernel distance")):
            value = result.get(prefix + name)
            if value is not None:
                lines.append(
                    f"{name.replace('_', ' of the ')} of {what.replace('_', ' ')}: {value:.3f}, "
                    f"p = {result[f'{prefix}{name}_p_value']:.4f}"
                )
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    frequencies = read_frequencies(values.frequencies)
    extractor = extractors.from_flags(values, values.references)
    if extractor is None:
        raise ValueError("there is nothing to look with: give --weights=FILE, or --features")
    result = longtail(
        values.a,
        values.b,
        values.references,
        frequencies,
        values.out,
        extractor=extractor,
        least=values.least,
        batch_size=values.batch_size,
    )
    print(table(result))


def _define_flags() -> None:
    flags.DEFINE_string("a", None, "Images of a model, with labels.", required=True)
    flags.DEFINE_string("b", None, "Images of another.", required=True)
    flags.DEFINE_string("references", None, "Real images, a folder a class.", required=True)
    flags.DEFINE_string("frequencies", None, "CSV table: class, frequency.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_integer("least", 10, "Images that a class needs on each side.", lower_bound=2)
    flags.DEFINE_integer("batch_size", 32, "Images looked at together.")
    extractors.define_flags()


if __name__ == "__main__":
    _define_flags()
    command.run(main)
