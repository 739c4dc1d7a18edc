"""Evaluates a generated set against a reference set: features, statistics, metrics, resumably.

`evals.fid` runs it as a command; `evals.completion`, `evals.follow` and `evals.suite` call it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import jax
from etils import epath

from data_pipelines.representations.base import Representation
from evals import gallery, metrics
from evals.distances.statistics import Statistics
from evals.features import features
from evals.features.base import INDEX, Extractor, FeatureError, FeatureSet
from evals.inputs import images
from evals.inputs.codec import GeneratedImages
from evals.inputs.images import FittedImages, Images
from evals.metrics import Side
from evals.reporting.results import require_result, write_json
from jpeglm_jax.generation.manifest import MANIFEST, is_unfinished
from jpeglm_jax.training import checkpoint

STEPS = ("features", "stats", "metrics")


def evaluate(
    generated: str,
    references: str | None,
    out: epath.PathLike,
    *,
    extractor: Extractor | None = None,
    representation: Representation | None = None,
    references_coded: str | None = None,
    floor: bool = True,
    until: str = "metrics",
    batch_size: int = 32,
    max_neighbours: int = metrics.MAX_NEIGHBOURS,
) -> dict[str, Any]:
    """Evaluates a generated set against a reference set.

    Args:
      generated: a path or spec of images, see `images.open_images`; a folder that
        `jpeglm_jax.generate` wrote; the folder of one set of an earlier evaluation
        (`OUT/generated`); or an .npz file of statistics, also of pytorch-fid or clean-fid.
      references: the same; None stops after the statistics of the generated set.
      out: folder to write: `generated/`, `references/`, `references_coded/` with features and
        stats.npz, and metrics.json.
      extractor: of the features; not needed for sets with features or statistics already.
      representation: of the model. References are then cropped and resized as in training, and
        compared both before and after its codec.
      references_coded: statistics or features of the references after the codec, for
        `references` that are not images.
      floor: whether to evaluate the references after the codec.
      until: the last of `STEPS` to run.
      batch_size: images per call of the extractor.
      max_neighbours: max images of each set for precision, recall, density and coverage.

    Returns:
      The contents of metrics.json; {} if it stopped before the metrics.

    Raises:
      SettingsError: metrics.json of `out` is another program's.
      ValueError (of several kinds): inputs that cannot be used or cannot be compared.
    """
    if until not in STEPS:
        raise ValueError(f"found until={until!r}, expected one of {', '.join(STEPS)}")
    out = epath.Path(out)
    require_result(out / "metrics.json")
    opener = _Sides(out, extractor, batch_size, until)
    ours = opener.open(generated, representation)
    inputs: dict[str, Images | Side] = {"generated": ours}
    if references is not None:
        theirs = opener.open(references, None)
        _require_disjoint(ours, theirs)
        if representation is not None and _is_real(theirs):
            inputs["references"] = FittedImages(theirs, representation, coded=False)
            if floor:
                inputs["references_coded"] = FittedImages(theirs, representation, coded=True)
        else:
            inputs["references"] = theirs
    if references_coded is not None:
        inputs["references_coded"] = opener.open(references_coded, None)
    sides = {name: opener.side(name, value) for name, value in inputs.items()}
    if references is None or until != "metrics" or jax.process_index():
        return {}
    outcome = ours.outcome.to_json() if isinstance(ours, GeneratedImages) else None
    result = _metrics({name: side for name, side in sides.items() if side}, max_neighbours)
    result = {**result, "codec": outcome, "versions": checkpoint.versions()}
    out.mkdir(parents=True, exist_ok=True)
    _write_gallery(out, inputs, sides, representation, max_neighbours)
    write_json(out / "metrics.json", result)
    return result


def _write_gallery(
    out: epath.Path,
    inputs: Mapping[str, Images | Side],
    sides: Mapping[str, Side | None],
    representation: Representation | None,
    max_neighbours: int,
) -> None:
    """Writes pictures of both sets for the page, as far as their images can be opened."""

    def pictured(name: str) -> gallery.Pictured | None:
        side, images = sides[name], inputs[name]
        if side is None or side.features is None:
            return None
        opened = images if isinstance(images, Images) else None
        return gallery.open_pictured(side.features, opened, representation)

    ours, theirs = pictured("generated"), pictured("references")
    gallery.write(out, ours, theirs, max_neighbours=max_neighbours)


def _is_real(value: Images | Side) -> TypeGuard[Images]:
    """Whether these are images that were not decoded from prepared shards."""
    return isinstance(value, Images) and "decoded_from" not in value.metadata


class _Sides:
    """Opens the sets of an evaluation and computes their features and statistics, if missing."""

    def __init__(self, out: epath.Path, extractor: Extractor | None, batch_size: int, until: str):
        self._out, self._extractor = out, extractor
        self._batch_size, self._until = batch_size, until

    def open(self, where: str, representation: Representation | None) -> Images | Side:
        """Returns a `Side` if there are features or statistics at a path already, else images."""
        if where.endswith(".npz"):
            statistics, metadata = Statistics.load(where)
            return Side(where, statistics, metadata)
        folder = epath.Path(where)
        if ":" not in where and folder.is_dir():
            existing = self._features_in(folder)
            if existing is not None:
                return Side(where, _statistics(folder, existing), existing.metadata, existing)
            if (folder / MANIFEST).is_file():
                return GeneratedImages(folder, representation)
            if is_unfinished(folder):
                raise FeatureError(
                    f"{folder} holds a generation job that has not finished: run its command "
                    "again, then evaluate"
                )
        return images.open_images(where)

    def _features_in(self, folder: epath.Path) -> FeatureSet | None:
        """The features in the folder of one set of an evaluation; None for any other folder."""
        complete = sorted(path.parent for path in folder.glob(f"features-*/{INDEX}"))
        if self._extractor is not None:
            wanted = self._extractor.folder_name
            complete = [path for path in complete if path.name == wanted] or complete
        if len(complete) > 1:
            found = ", ".join(path.name for path in complete)
            raise FeatureError(
                f"{folder} holds several sets of features: {found}; choose one with --features"
            )
        return FeatureSet.load(complete[0]) if complete else None

    def side(self, name: str, value: Images | Side) -> Side | None:
        """Computes features and statistics if missing; None if it stops before the statistics."""
        if isinstance(value, Side):
            return value
        if self._extractor is None:
            raise FeatureError(
                f"no extractor for the images of {value.name}; give --weights=FILE for the FID "
                "network, or --features"
            )
        folder = self._out / name
        found = features.extract(value, self._extractor, folder, batch_size=self._batch_size)
        if self._until == "features" or jax.process_index():
            return None
        return Side(value.name, _statistics(folder, found), found.metadata, found)


def _statistics(folder: epath.Path, found: FeatureSet) -> Statistics:
    """Reads stats.npz if it is of these features, else computes and writes it."""
    path = folder / "stats.npz"
    metadata = json.loads(json.dumps({**found.metadata, "n": len(found)}))
    if path.is_file():
        statistics, stored = Statistics.load(path)
        if stored == metadata:
            return statistics
    try:
        statistics = Statistics.of(found.main)
    except FeatureError as error:
        raise FeatureError(f"{found.metadata['images']['from']}: {error}") from None
    statistics.save(path, metadata)
    return statistics


def _require_disjoint(ours: Images | Side, theirs: Images | Side) -> None:
    """Raises FeatureError if the same files are in both sets."""
    if not (isinstance(ours, Images) and isinstance(theirs, Images)):
        return
    for a in ours.paths:
        for b in theirs.paths:
            if Path(a).is_relative_to(b) or Path(b).is_relative_to(a):
                raise FeatureError(
                    f"the generated images in {a} and the references in {b} overlap, so images "
                    "would be compared with themselves; use separate folders"
                )


def _metrics(sides: Mapping[str, Side], max_neighbours: int) -> dict[str, Any]:
    """The metrics of the model and of the codec floor, with counts, warnings and settings."""
    ours, theirs, coded = (
        sides.get(name) for name in ("generated", "references", "references_coded")
    )
    assert ours is not None and theirs is not None
    warnings = metrics.require_same_features(ours, theirs) + _warnings(ours, theirs)
    whole = metrics.compare(ours, theirs, max_neighbours)
    result: dict[str, Any] = {
        **whole.values,
        "n_generated": ours.n,
        "n_references": theirs.n,
        "not_computed": whole.not_computed,
    }
    if coded is not None:
        warnings += metrics.require_same_features(coded, theirs)
        result["floor"] = metrics.compare(coded, theirs, max_neighbours).values
        result["against_coded_references"] = metrics.compare(ours, coded, max_neighbours).values
    result["identical_images"] = metrics.identical_images(ours, theirs)
    if result["identical_images"]:
        warnings.append(
            f"{result['identical_images']} of the generated images are references, pixel for pixel"
        )
    return {
        **result,
        "warnings": warnings,
        "settings": {
            "features": {name: dict(side.metadata) for name, side in sides.items()},
            "max_neighbours": max_neighbours,
        },
        "rejected": _per_side(sides, lambda found: [list(pair) for pair in found.rejected]),
        "sizes": _per_side(sides, lambda found: dict(found.sizes)),
    }


def _per_side(sides: Mapping[str, Side], get: Callable[[FeatureSet], Any]) -> dict[str, Any]:
    return {name: get(side.features) for name, side in sides.items() if side.features is not None}


def _warnings(ours: Side, theirs: Side) -> list[str]:
    """Warnings on how the numbers may be compared."""
    found = []
    settings = (ours.metadata or theirs.metadata).get("settings", {})
    if _is_fid(ours, theirs) and ours.statistics.mean.size != 2048:
        found.append(
            f"FID of {ours.statistics.mean.size} dimensions is not comparable with "
            "published values, which are of 2,048"
        )
    if "weights_known_as" in settings and settings["weights_known_as"] is None:
        found.append(
            f"the weights (SHA-256 {settings['weights_sha256']}) are not on the list of known "
            "files; the metrics may not be comparable with published values"
        )
    for side in (ours, theirs):
        if side.features is None:
            continue
        if len(side.features.sizes) > 1:
            found.append(f"{side.name} has images of {len(side.features.sizes)} sizes")
        if side.features.rejected:
            name, reason = side.features.rejected[0]
            found.append(
                f"{len(side.features.rejected)} files of {side.name} were rejected as unreadable "
                f"and do not count; the first is {name}: {reason}"
            )
    return found


def _is_fid(ours: Side, theirs: Side) -> bool:
    """Whether the Fréchet distance is FID."""
    return metrics.metric_names(ours.metadata or theirs.metadata)["frechet"] == "fid"
