"""Example: python -m evals.longtail --a=SAMPLES_A --b=SAMPLES_B --references=folder:PHOTOS \\
    --frequencies=classes.csv --out=longtail --weights=pt_inception-2015-12-05-6726825d.pth

Measures whether one model generates rare classes better than another (JPEG-LM, arXiv 2408.08459,
section 6): for every class the Fréchet distance of each model's images from real ones, and the
correlation of the difference, a - b, with the frequency of the class in the world. A positive
correlation means that a is better on rare classes. Writes longtail.json and longtail.svg.

The paper's test of small elements is `evals.completion --half_size`.
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
from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals.distances import correlation, kernels
from evals.distances.frechet import frechet
from evals.distances.statistics import Statistics
from evals.evaluation import DEFAULTS
from evals.features import extractors, features
from evals.features.base import Extractor, FeatureSet
from evals.inputs.codec import GeneratedImages
from evals.inputs.images import FittedImages, Images, open_images
from evals.reporting import curves, settings
from evals.reporting.results import command_line, make_result, write_json
from evals.sections.longtail import long_tail_plot
from jpeglm_jax.generation.manifest import MANIFEST
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint


class TableError(ValueError):
    """A table of frequencies that cannot be read."""


class ClassFeatures(NamedTuple):
    """Features of a set of images by class.

    Attributes:
      by_class: class -> features of its images, float [n, d].
      unlabelled: number of images without a class.
      feature_set: of all images.
    """

    by_class: Mapping[str, np.ndarray]
    unlabelled: int
    feature_set: FeatureSet


def longtail(
    a: str,
    b: str,
    references: str,
    frequencies: Mapping[str, float],
    out: epath.PathLike,
    *,
    extractor: Extractor,
    min_images: int = 10,
    batch_size: int = 32,
    frequencies_file: str | None = None,
    folders: Mapping[str, epath.PathLike] | None = None,
) -> dict[str, Any]:
    """Compares two models class by class, and writes longtail.json and longtail.svg to a folder.

    Args:
      a, b: folders that `jpeglm_jax.generate` wrote with labels, or images in one folder per class.
      references: real images with classes; labels of a and b refer to these classes.
      frequencies: of the classes, by name.
      out: folder to write.
      extractor: of the features.
      min_images: min images of a class in each set.
      batch_size: images per call of the extractor.
      frequencies_file: the table that the frequencies are from, for the report.
      folders: "a", "b" or "references" -> folder of its features, where an evaluation of the same
        images has computed them; default: those of `out`.

    Returns:
      The contents of longtail.json.

    Raises:
      ValueError: no classes, or too few with enough images and a frequency.
    """
    out = epath.Path(out)
    real = open_images(references)
    names = real.label_names
    if not names:
        raise ValueError(f"{references} has no classes; expected one folder of images per class")
    sides = {"a": _generated(a), "b": _generated(b), "references": _fitted(real, a)}
    known = folders or {}
    classed = {
        side: _classed(
            images, names, extractor, epath.Path(known.get(side, out / side)), batch_size
        )
        for side, images in sides.items()
    }
    rows, skipped = _rows(classed, frequencies, min_images)
    if len(rows) < correlation.MIN_PAIRS:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise ValueError(
            f"found {len(rows)} classes with enough images and a frequency, expected at least "
            f"{correlation.MIN_PAIRS}" + (f" ({reasons})" if reasons else "")
        )
    figures = {
        "metric": "fid" if extractor.name == "inception" else "frechet_distance",
        **_correlations(rows),
        "n_classes": len(rows),
        "n_a": sum(row["n"] for row in rows),
        "n_references": sum(row["n_references"] for row in rows),
        "classes": rows,
        "rejected": {
            side: [list(pair) for pair in one.feature_set.rejected] for side, one in classed.items()
        },
        "features": {side: dict(one.feature_set.metadata) for side, one in classed.items()},
        "plot": "longtail.svg",
    }
    real_features = classed["references"].feature_set
    flags: dict[str, Any] = {"a": a, "b": b, "references": references}
    flags |= {"frequencies": frequencies_file, "min_images": min_images}
    flags |= {**extractor.flags, "out": out}
    found = make_result(
        "longtail",
        command_line("evals.longtail", flags, {**DEFAULTS, "min_images": 10}),
        {
            **_of_model("a", a),
            **_of_model("b", b),
            "references": references,
            "n_references": sum(row["n_references"] for row in rows),
            "frequencies": frequencies_file,
            "min_images": min_images,
            **settings.of_features(real_features.metadata, real_features.main.shape[1]),
        },
        figures,
        versions=checkpoint.versions(),
        warnings=_warnings(classed, skipped),
        not_computed=skipped,
    )
    out.mkdir(parents=True, exist_ok=True)
    curves.save(long_tail_plot(found), out / "longtail.svg")
    write_json(out / "longtail.json", found)
    return found


def _of_model(side: str, folder: str) -> dict[str, Any]:
    """The settings of one of the two models, with its letter in their names."""
    found = {} if ":" in folder else settings.of_generation(folder)
    return {side: folder, **{f"{side}_{name}": value for name, value in found.items()}}


def read_frequencies(path: epath.PathLike) -> dict[str, float]:
    """Reads a CSV table of two columns, class and frequency; the first line may be a header.

    Raises TableError, which names the line.
    """
    path, result = epath.Path(path), {}
    if not path.is_file():
        raise TableError(f"there is no file {path}; expected a table: class, frequency")
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} is not a CSV table: {error}") from error
    for number, cells in enumerate(lines, 1):
        if not cells:
            continue
        line = f"{path}, line {number}"
        if len(cells) != 2:
            raise TableError(f"{line} has {len(cells)} columns, expected class, frequency")
        name, text = cells[0].strip(), cells[1].strip()
        try:
            frequency = float(text)
        except ValueError:
            if number == 1:
                continue  # the header
            raise TableError(f"{line}: found frequency {text!r}, expected a number") from None
        if not math.isfinite(frequency) or frequency < 0:
            raise TableError(f"{line}: found frequency {text}, expected 0 or more")
        if name in result:
            raise TableError(f"{line}: the class {name!r} appears twice")
        result[name] = frequency
    if not result:
        raise TableError(f"{path} holds no class; expected lines of class, frequency")
    return result


def _generated(where: str) -> Images:
    folder = epath.Path(where)
    if ":" not in where and (folder / MANIFEST).is_file():
        has_config = (folder / CONFIG_FILE).is_file()
        return GeneratedImages(folder, representations.load(folder) if has_config else None)
    return open_images(where)


def _fitted(real: Images, generated: str) -> Images:
    """References cropped and resized as in training, if the model's representation is known."""
    if ":" in generated or not (epath.Path(generated) / CONFIG_FILE).is_file():
        return real
    if "decoded_from" in real.metadata:
        return real
    return FittedImages(real, representations.load(generated), coded=False)


def _classed(
    images: Images,
    names: Sequence[str],
    extractor: Extractor,
    folder: epath.Path,
    batch_size: int,
) -> ClassFeatures:
    found = features.extract(images, extractor, folder, batch_size=batch_size)
    own = images.label_names or names  # generated images have label numbers only
    labels = {images.key(number): images.label(number) for number in range(len(images))}
    indices: dict[str, list[int]] = {}
    unlabelled = 0
    for index, key in enumerate(found.keys):
        label = labels[key]
        if 0 <= label < len(own):
            indices.setdefault(own[label], []).append(index)
        else:
            unlabelled += 1
    by_class = {name: found.main[rows] for name, rows in indices.items()}
    return ClassFeatures(by_class, unlabelled, found)


def _rows(
    classed: Mapping[str, ClassFeatures], frequencies: Mapping[str, float], min_images: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each class, and the skipped classes, each with the reason."""
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for name in sorted(set().union(*(one.by_class for one in classed.values()))):
        if name not in frequencies:
            skipped[name] = "it has no frequency in the table"
            continue
        counts = {side: len(one.by_class.get(name, ())) for side, one in classed.items()}
        few = [f"{count} images of {side}" for side, count in counts.items() if count < min_images]
        if few:
            skipped[name] = f"{' and '.join(few)}, expected at least {min_images}"
            continue
        rows.append(_row(name, frequencies[name], classed))
    return rows, skipped


def _row(name: str, frequency: float, classed: Mapping[str, ClassFeatures]) -> dict[str, Any]:
    ours, theirs, real = (classed[side].by_class[name] for side in ("a", "b", "references"))
    # The distance is biased by about c / n, so both models are compared at the same n.
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
    """Coefficients and p-values of both distances; None if all classes have the same frequency."""
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


def _warnings(classed: Mapping[str, ClassFeatures], skipped: Mapping[str, str]) -> list[str]:
    warnings = []
    if skipped:
        name, reason = next(iter(skipped.items()))
        warnings.append(f"classes that are skipped: {len(skipped)}; the first is {name}: {reason}")
    for side, one in classed.items():
        if one.unlabelled:
            warnings.append(f"{one.unlabelled} images of {side} have no class and do not count")
        if rejected := one.feature_set.rejected:
            name, reason = rejected[0]
            warnings.append(
                f"{len(rejected)} files of {side} were rejected as unreadable; the first is "
                f"{name}: {reason}"
            )
    smallest = min(len(part) for one in classed.values() for part in one.by_class.values())
    dimensions = classed["references"].feature_set.main.shape[1]
    if smallest <= dimensions:
        warnings.append(
            f"classes have as few as {smallest} images for {dimensions} dimensions: distances have "
            "a large bias that depends on the model; kernel distances are unbiased"
        )
    return warnings


def table(result: Mapping[str, Any]) -> str:
    """Formats longtail.json for a terminal."""
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
        raise ValueError("no extractor: give --weights=FILE, or --features")
    result = longtail(
        values.a,
        values.b,
        values.references,
        frequencies,
        values.out,
        extractor=extractor,
        min_images=values.min_images,
        batch_size=values.batch_size,
        frequencies_file=values.frequencies,
    )
    print(table(result))


def _define_flags() -> None:
    flags.DEFINE_string("a", None, "Images of the first model, with labels.", required=True)
    flags.DEFINE_string("b", None, "Images of the second model.", required=True)
    flags.DEFINE_string("references", None, "Real images, one folder per class.", required=True)
    flags.DEFINE_string("frequencies", None, "CSV table: class, frequency.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_integer("min_images", 10, "Min images of a class in each set.", lower_bound=2)
    flags.DEFINE_integer("batch_size", 32, "Images per call of the network.", lower_bound=1)
    extractors.define_flags()


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError)
