"""Evaluates a generated set against a reference set: features, statistics, metrics, resumably.

`evals.fid` runs it as a command; `evals.completion`, `evals.follow` and `evals.suite` call it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import jax
from etils import epath

from data_pipelines.representations.base import CONFIG_FILE, Representation
from data_pipelines.utils import npz
from evals import gallery, metrics
from evals import per_class as classwise
from evals.distances import adm
from evals.distances.statistics import Statistics
from evals.features import features
from evals.features.base import INDEX, Extractor, FeatureError, FeatureSet
from evals.inputs import images
from evals.inputs.codec import GeneratedImages
from evals.inputs.images import ArrayImages, FittedImages, Images, OpenAs
from evals.metrics import Side
from evals.reporting import settings
from evals.reporting.results import command_line, make_result, require_result, write_json
from jpeglm_jax.generation.manifest import MANIFEST, is_unfinished
from jpeglm_jax.training import checkpoint

STEPS = ("features", "stats", "metrics")
REPRESENTATION = "representation"  # folder in `out` of a representation that no file holds
# Defaults of the flags of `evals.fid`, which a printed command omits.
DEFAULTS = {
    "dims": "2048",
    "resize": "clean",
    "floor": True,
    "max_neighbours": metrics.MAX_NEIGHBOURS,
    "num": 1000,
    "seed": 0,
    "open_as": "viewer",
    "per_class": False,
}
_OF_PRESET = ("dims", "resize", "max_neighbours")  # flags that a preset sets


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
    preset: str | None = None,
    open_as: OpenAs = "viewer",
    npz_features: str | None = None,
    per_class: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Evaluates a generated set against a reference set.

    Args:
      generated: a path or spec of images, see `images.open_images`; a folder that
        `jpeglm_jax.generate` wrote; the folder of one set of an earlier evaluation
        (`OUT/generated`); or an .npz file of statistics, also of pytorch-fid, clean-fid or ADM,
        or of a sample batch.
      references: the same; None stops after the statistics of the generated set.
      out: folder to write: `generated/`, `references/`, `references_coded/` with features and
        stats.npz, and metrics.json.
      extractor: of the features; not needed for sets with features or statistics already.
      representation: of the model. References are then cropped and resized as in training, and
        compared both before and after its codec.
      references_coded: the references after the codec, for `references` that are statistics or
        features: their statistics or features, or images that are put through it here.
      floor: whether to evaluate the references after the codec.
      until: the last of `STEPS` to run.
      batch_size: images per call of the extractor.
      max_neighbours: max images of each set for precision, recall, density and coverage.
      preset: definitions of the metrics, see `metrics.compare`; None: this project's.
      open_as: how image files become pixels, see `images.OpenAs`.
      npz_features: the network of the statistics in .npz files that do not state theirs.
      per_class: also write classes.json, see `evals.per_class`.
      command: that gives the result again; default that of `evals.fid` with these arguments.

    Returns:
      The contents of metrics.json; {} if it stopped before the metrics.

    Raises:
      SettingsError: metrics.json of `out` is another program's.
      ValueError (of several kinds): inputs that cannot be used or cannot be compared.
    """
    if until not in STEPS:
        raise ValueError(f"found until={until!r}, expected one of {', '.join(STEPS)}")
    for flag, count in {"batch_size": batch_size, "max_neighbours": max_neighbours}.items():
        if count < 1:
            raise ValueError(f"{flag} is {count}; expected 1 or more")
    out = epath.Path(out)
    require_result(out / "metrics.json")
    opener = _Sides(out, extractor, batch_size, until, open_as, npz_features)
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
        coded = opener.open(references_coded, None)
        if representation is not None and _is_real(coded):
            coded = FittedImages(coded, representation, coded=True)
        inputs["references_coded"] = coded
    if per_class:
        classwise.require_classes(inputs["generated"], inputs.get("references", ours))
    sides: dict[str, Side | None] = {}
    for name, value in inputs.items():
        alone = (first := sides.get("generated")) is not None and first.features is None
        sides[name] = opener.side(name, value, statistics_only=alone)
    if references is None or until != "metrics" or jax.process_index():
        return {}
    if command is None:
        given: dict[str, Any] = {"references_coded": references_coded, "floor": floor}
        given |= {"max_neighbours": max_neighbours, "preset": preset, "open_as": open_as}
        given |= {"npz_features": npz_features, "per_class": per_class}
        command = _command(generated, references, out, extractor, representation, given)
    codec = ours.outcome.to_json() if isinstance(ours, GeneratedImages) else None
    sampled: dict[str, Any] = {"preset": preset, "open_as": open_as, "validity": None}
    if isinstance(ours, GeneratedImages):
        sampled |= settings.of_generation(generated) | {"validity": ours.validity_of}
        opener.warnings += _changed_documents(ours)
    known = {name: side for name, side in sides.items() if side}
    found = _result(known, max_neighbours, preset, command, sampled, codec, opener.warnings)
    out.mkdir(parents=True, exist_ok=True)
    _write_gallery(out, inputs, sides, representation, max_neighbours)
    if per_class:
        a, b = known["generated"], known["references"]
        assert a.features is not None and b.features is not None
        generated_images, real_images = inputs["generated"], inputs["references"]
        assert isinstance(generated_images, Images) and isinstance(real_images, Images)
        names = metrics.metric_names(a, b)
        rows = classwise.classes(
            generated_images, real_images, a.features, b.features, names, found
        )
        write_json(out / "classes.json", rows)
    write_json(out / "metrics.json", found)
    return found


def _command(
    generated: str,
    references: str,
    out: epath.Path,
    extractor: Extractor | None,
    representation: Representation | None,
    given: Mapping[str, Any],
) -> str:
    """The command line of `evals.fid` that evaluates these sets.

    The representation is that of the folder of generated files, or of the folder that it was saved
    to.
    """
    flags: dict[str, Any] = {"generated": generated, "references": references, **given}
    if representation is not None and not (epath.Path(generated) / CONFIG_FILE).is_file():
        flags["representation"] = out / REPRESENTATION
        representation.save(out / REPRESENTATION)
    return fid_command(flags, extractor, out)


def fid_command(flags: Mapping[str, Any], extractor: Extractor | None, out: epath.PathLike) -> str:
    """A command line of `evals.fid`.

    Args:
      flags: besides those of the extractor.
      extractor: of the features.
      out: folder of the evaluation.
    """
    given = {**flags, **(extractor.flags if extractor else {}), "out": out}
    if flags.get("preset"):
        given = {name: value for name, value in given.items() if name not in _OF_PRESET}
    return command_line("evals.fid", given, DEFAULTS)


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

    def __init__(
        self,
        out: epath.Path,
        extractor: Extractor | None,
        batch_size: int,
        until: str,
        open_as: OpenAs,
        npz_features: str | None,
    ):
        self._out, self._extractor = out, extractor
        self._batch_size, self._until, self._open_as = batch_size, until, open_as
        self._npz_features = npz_features
        self._arrays: dict[str, ArrayImages] = {}  # of files with statistics too
        self.warnings: list[str] = []

    def open(self, where: str, representation: Representation | None) -> Images | Side:
        """Returns a `Side` if there are features or statistics at a path already, else images."""
        if where.endswith(".npz"):
            return self._open_npz(where)
        folder = epath.Path(where)
        if ":" not in where and folder.is_dir():
            existing = self._features_in(folder)
            if existing is not None:
                return Side(where, _statistics(folder, existing), existing.metadata, existing)
            if (folder / MANIFEST).is_file():
                return GeneratedImages(folder, representation, self._open_as)
            if is_unfinished(folder):
                raise FeatureError(
                    f"{folder} holds a generation job that has not finished: run its command "
                    "again, then evaluate"
                )
        return images.open_images(where, self._open_as)

    def _open_npz(self, where: str) -> Images | Side:
        """Statistics, a sample batch, or both, as in the references of ADM's evaluator."""
        names = npz.headers(where)
        if images.ARRAY in names and "mu" not in names:
            return images.open_images(where)
        statistics, metadata = Statistics.load(where)
        spatial = Statistics.load_spatial(where)
        side = Side(where, statistics, metadata, spatial=spatial, from_file=True)
        if not metadata:
            side = dataclasses.replace(side, stated=self._npz_features)
        if spatial is None or metadata:
            return side
        if images.ARRAY in names and self._extractor is not None:
            extractor = self._extractor
            if not adm.are_features_of(extractor.name, extractor.main, extractor.settings):
                self.warnings.append(
                    f"mu and sigma in {where} are of Inception's 2,048 features with the resize "
                    "tf1 and were not used; its statistics are those of its images"
                )
                return images.open_images(where)
            self._arrays[where] = ArrayImages(where)
        return dataclasses.replace(side, metadata=adm.FEATURES)

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

    def side(
        self, name: str, value: Images | Side, *, statistics_only: bool = False
    ) -> Side | None:
        """Computes features and statistics if missing; None if it stops before the statistics.

        Features of a file that holds statistics too are not computed for `statistics_only`.
        """
        given = value if isinstance(value, Side) else None
        if isinstance(value, Side):
            if statistics_only or value.name not in self._arrays:
                return value
            value = self._arrays[value.name]
        if self._extractor is None:
            raise FeatureError(
                f"no extractor for the images of {value.name}; give --weights=FILE for the FID "
                "network, or --features"
            )
        folder = self._out / name
        found = features.extract(value, self._extractor, folder, batch_size=self._batch_size)
        if self._until == "features" or jax.process_index():
            return None
        if given is not None:
            metadata = {**found.metadata, "statistics": f"mu and sigma of {given.name}"}
            return dataclasses.replace(given, metadata=metadata, features=found)
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


def _result(
    sides: Mapping[str, Side],
    max_neighbours: int,
    preset: str | None,
    command: str,
    sampled: Mapping[str, Any],
    codec: Mapping[str, Any] | None,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The metrics of the model and of the codec floor, with counts, warnings and settings."""
    ours, theirs, coded = (
        sides.get(name) for name in ("generated", "references", "references_coded")
    )
    assert ours is not None and theirs is not None
    warnings = [
        *warnings,
        *metrics.require_same_features(ours, theirs),
        *_warnings(ours, theirs),
    ]
    whole = metrics.compare(ours, theirs, max_neighbours, preset)
    warnings += whole.warnings
    figures: dict[str, Any] = {**whole.values, "n_generated": ours.n, "n_references": theirs.n}
    if coded is not None:
        warnings += metrics.require_same_features(coded, theirs)
        figures["floor"] = metrics.compare(coded, theirs, max_neighbours, preset).values
        against = metrics.compare(ours, coded, max_neighbours, preset)
        figures["against_coded_references"] = against.values
    figures["identical_images"] = metrics.identical_images(ours, theirs)
    if figures["identical_images"]:
        warnings.append(
            f"{figures['identical_images']} of the generated images are references, pixel for pixel"
        )
    figures |= {
        "codec": codec,
        "features": {name: dict(side.metadata) for name, side in sides.items()},
        "rejected": _per_side(sides, lambda found: [list(pair) for pair in found.rejected]),
        "sizes": _per_side(sides, lambda found: dict(found.sizes)),
    }
    of = {
        "generated": ours.name,
        "n_generated": ours.n,
        "size_generated": _sizes(ours),
        "references": theirs.name,
        "n_references": theirs.n,
        "size_references": _sizes(theirs),
        **settings.of_features(ours.metadata or theirs.metadata, ours.statistics.mean.size),
        "network": ours.extractor or theirs.extractor,
        "max_neighbours": max_neighbours,
        **sampled,
    }
    return make_result(
        "metrics",
        command,
        of,
        figures,
        versions=checkpoint.versions(),
        warnings=warnings,
        not_computed=whole.not_computed,
    )


def _sizes(side: Side) -> str | None:
    return settings.of_sizes(side.features.sizes) if side.features is not None else None


def _per_side(sides: Mapping[str, Side], get: Callable[[FeatureSet], Any]) -> dict[str, Any]:
    return {name: get(side.features) for name, side in sides.items() if side.features is not None}


def _warnings(ours: Side, theirs: Side) -> list[str]:
    """Warnings on how the numbers may be compared."""
    found = []
    known = (ours.metadata or theirs.metadata).get("settings", {})
    names = metrics.metric_names(ours, theirs)
    found += _few_images(ours, theirs) + _other_resolution(ours, theirs)
    if names["frechet"] == "fid" and ours.statistics.mean.size != 2048:
        found.append(
            f"FID of {ours.statistics.mean.size} dimensions is not comparable with "
            "published values, which are of 2,048"
        )
    if "weights_known_as" in known and known["weights_known_as"] is None:
        found.append(
            f"the weights (SHA-256 {known['weights_sha256']}) are not on the list of known "
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


def _changed_documents(generated: GeneratedImages) -> list[str]:
    """Warnings on documents that changed after they were sampled."""
    found = []
    if changed := generated.outcome.other_than_manifest:
        found.append(
            f"the validity of {changed} documents is not what the manifest of {generated.name} "
            "states: they were changed since, or another version validated them"
        )
    if damaged := generated.damaged_files():
        found.append(
            f"{len(damaged)} files of {generated.name} are missing or damaged, the first is "
            f"{damaged[0]}; the figures are of the recorded tokens"
        )
    return found


def _few_images(ours: Side, theirs: Side) -> list[str]:
    """A warning if a set has fewer images than its features have dimensions."""
    dimensions = ours.statistics.mean.size
    few = [
        f"{side.n} images of {side.name}"
        for side in (ours, theirs)
        if side.n is not None and side.n < dimensions
    ]
    if not few:
        return []
    return [
        f"{' and '.join(few)} are fewer than the {dimensions} dimensions of the features: Fréchet "
        "distances are much too large, and comparable only at equal numbers of images"
    ]


def _other_resolution(ours: Side, theirs: Side) -> list[str]:
    """A warning if the sets have images of different sizes."""
    if ours.features is None or theirs.features is None:
        return []
    if ours.features.sizes.keys() == theirs.features.sizes.keys():
        return []
    a, b = (settings.of_sizes(side.features.sizes) for side in (ours, theirs) if side.features)
    return [
        f"generated images are {a}, references {b}: distances include this difference in resolution"
    ]
