"""All metrics of a generated set against a reference set, from their features or statistics.

`evals.evaluation` and `evals.longtail` use them; the distances are in `evals.distances`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.utils.compare import differences
from evals.distances import adm, extrapolation, frechet, kernels, neighbours
from evals.distances.frechet import Estimate
from evals.distances.statistics import Statistics, disjoint
from evals.features.base import FeatureError, FeatureSet

PRESETS = ("adm",)  # evaluators whose definitions can be chosen, see `evals.distances.adm`
MAX_NEIGHBOURS = 10_000  # max images per set for precision, recall, density and coverage

# Names of the metrics for features of the FID network, and for other features.
_INCEPTION_NAMES = {
    "frechet": "fid",
    "frechet_at_infinity": "fid_infinity",
    "spatial": "sfid",
    "kernel": "kid",
    "score": "inception_score",
}
_OTHER_NAMES = {
    "frechet": "frechet_distance",
    "frechet_at_infinity": "frechet_distance_infinity",
    "spatial": "spatial_frechet_distance",
    "kernel": "kernel_distance",
    "score": "classifier_score",
}


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two sets of images that a metric compares.

    Attributes:
      name: of the set, for messages.
      statistics: of the main feature.
      metadata: of the features, see `FeatureSet`; {} if another tool computed them.
      features: None if there are only statistics.
      spatial: statistics of the spatial feature, for sFID; None if they are not in a file.
      from_file: whether `statistics` are those of a file, and not of `features`.
      stated: the extractor of statistics without metadata, where the user states it.
    """

    name: str
    statistics: Statistics
    metadata: Mapping[str, Any]
    features: FeatureSet | None = None
    spatial: Statistics | None = None
    from_file: bool = False
    stated: str | None = None

    @property
    def n(self) -> int | None:
        return self.statistics.n

    @property
    def extractor(self) -> str | None:
        """The name of the extractor; None if it is unknown."""
        return self.metadata.get("extractor", self.stated)


class Comparison(NamedTuple):
    """The metrics of one set against another.

    Attributes:
      values: by name; with NAME_standard_error for those that have one, None if it is unknown.
      not_computed: the missing metrics, each with the reason.
      warnings: on single metrics.
    """

    values: dict[str, float | None]
    not_computed: dict[str, str]
    warnings: list[str]


def metric_names(*sides: Side) -> Mapping[str, str]:
    """Names of the metrics of these sets: FID if all features are known to be the FID network's."""
    known = all(side.extractor == "inception" for side in sides)
    return _INCEPTION_NAMES if known else _OTHER_NAMES


def require_same_features(a: Side, b: Side) -> list[str]:
    """Raises FeatureError if the features are of different networks, weights or resizes.

    Returns warnings on what cannot be checked because another tool computed the statistics.
    """
    if a.statistics.mean.shape != b.statistics.mean.shape:
        raise FeatureError(
            f"{a.name} has features of {a.statistics.mean.size} dimensions, {b.name} of "
            f"{b.statistics.mean.size}; compute both with the same --features and --dims"
        )
    unknown = [side.name for side in (a, b) if not side.metadata]
    if unknown:
        return [
            f"{name} does not state its network, weights and resize, which are assumed to be those "
            "of the other set"
            for name in unknown
        ]
    ours, theirs = _settings(a), _settings(b)
    if any("computed_by" in side.metadata for side in (a, b)):  # which states less
        names = ours.keys() & theirs.keys()
        ours, theirs = ({name: side[name] for name in sorted(names)} for side in (ours, theirs))
    different = differences(ours, theirs, f"for {a.name}", f"for {b.name}")
    if different:
        raise FeatureError(
            f"the features of both sets differ: {'; '.join(different)}; compute both with the "
            "same settings"
        )
    return [
        f"{side.name} was computed by {side.metadata['computed_by']}, which does not state the "
        "weights; they are assumed to be the original ones"
        for side in (a, b)
        if "computed_by" in side.metadata
    ]


def _settings(side: Side) -> dict[str, Any]:
    settings = dict(side.metadata["settings"])
    settings.pop("weights", None)  # a file name; the hash identifies the weights
    return {"features": side.metadata["extractor"], "main": side.metadata["main"], **settings}


def compare(
    generated: Side,
    references: Side,
    max_neighbours: int = MAX_NEIGHBOURS,
    preset: str | None = None,
) -> Comparison:
    """Computes all metrics that the features allow; names the others with the reason.

    Args:
      generated: the set to evaluate.
      references: the set to compare it with.
      max_neighbours: max images of each set for precision, recall, density and coverage.
      preset: one of `PRESETS`: Inception score, precision and recall by that evaluator's
        definitions, of all images.

    Raises FeatureError if the features are not of the same kind, see `require_same_features`, or
    not those of the preset.
    """
    require_same_features(generated, references)
    metadata = generated.metadata or references.metadata
    if preset is not None:
        _require_features_of_preset(metadata, preset)
    names = metric_names(generated, references)
    found = _Collected({}, {}, [])
    ours, theirs = generated.features, references.features
    found.frechet(names["frechet"], generated, references)
    if ours is not None:
        found.estimate(
            names["frechet_at_infinity"],
            lambda: extrapolation.frechet_at_infinity(ours.main, references.statistics),
        )
        if "logits" in ours.features:
            score = adm.inception_score if preset == "adm" else frechet.inception_score
            logits = found.finite(names["score"], ours, "logits")
            found.estimate(names["score"], lambda: score(logits))
    found.spatial(names["spatial"], generated, references)
    if ours is None or theirs is None:
        side = generated.name if ours is None else references.name
        missing = [names["kernel"], "mmd_gaussian", "precision", "recall", "density", "coverage"]
        if _is_of_cmmd(metadata):
            missing.append("cmmd")
        for name in missing:
            found.not_computed[name] = f"it needs features, but {side} has only statistics"
        return Comparison(*found)
    found.estimate(names["kernel"], lambda: kernels.kid(ours.main, theirs.main))
    found.estimate("mmd_gaussian", lambda: kernels.mmd_gaussian(ours.main, theirs.main))
    if _is_of_cmmd(metadata):
        found.estimate("cmmd", lambda: kernels.cmmd(ours.main, theirs.main))
    x, y = _subset(ours.main, max_neighbours), _subset(theirs.main, max_neighbours)
    if preset == "adm":
        of_all = adm.precision_recall
        found.group(("precision", "recall"), lambda: of_all(ours.main, theirs.main))
    else:
        found.group(("precision", "recall"), lambda: neighbours.precision_recall(x, y))
    found.group(("density", "coverage"), lambda: neighbours.density_coverage(x, y))
    return Comparison(*found)


def _is_of_cmmd(metadata: Mapping[str, Any]) -> bool:
    """Whether the features are of the network that CMMD is defined with."""
    architecture = metadata.get("settings", {}).get("architecture")
    return (metadata.get("extractor"), architecture) == kernels.CMMD_NETWORK


def _require_features_of_preset(metadata: Mapping[str, Any], preset: str) -> None:
    if preset not in PRESETS:
        raise ValueError(f"found preset {preset!r}, expected one of {', '.join(PRESETS)}")
    name, main = str(metadata.get("extractor")), str(metadata.get("main"))
    if not metadata or not adm.are_features_of(name, main, metadata["settings"]):
        raise FeatureError(
            f"the features are {name} {main}; the preset {preset} expects "
            "the 2,048 of Inception with the resize tf1: use --weights of that network and another "
            "--out, or leave out the preset"
        )


def _spatial(side: Side) -> Statistics | None:
    if side.spatial is not None or side.features is None:
        return side.spatial
    found = side.features.features.get("spatial")
    return None if found is None else Statistics.of(found)


def _subset(features: np.ndarray, max_count: int) -> np.ndarray:
    """The features, or at most `max_count` of them, sampled at random."""
    if len(features) <= max_count:
        return features
    return features[disjoint(len(features), -(-len(features) // max_count))[0]]


class _Collected(NamedTuple):
    values: dict[str, float | None]
    not_computed: dict[str, str]
    warnings: list[str]

    def finite(self, name: str, side: FeatureSet, feature: str) -> np.ndarray:
        """A feature that one metric needs, of the images whose values are finite, [n, d]."""
        values = side.features[feature]
        finite = np.isfinite(values).all(1)
        if not finite.all():
            wrong = np.flatnonzero(~finite)
            self.warnings.append(
                f"{name} is of {finite.sum()} images: the {feature} of {wrong.size} of "
                f"{len(values)} are NaN or infinite, the first is {side.keys[wrong[0]]}"
            )
        return values[finite]

    def frechet(self, name: str, generated: Side, references: Side) -> None:
        if generated.features is None or generated.from_file:
            self.values[name] = frechet.frechet(generated.statistics, references.statistics)
            self.values[f"{name}_standard_error"] = None
            return
        features = generated.features.main
        self.estimate(name, lambda: frechet.frechet_of_features(features, references.statistics))

    def spatial(self, name: str, generated: Side, references: Side) -> None:
        try:
            theirs = _spatial(references)
        except FeatureError as reason:
            self.not_computed[name] = str(reason)
            return
        if theirs is None:
            return
        if generated.spatial is not None:
            self.values[name] = frechet.frechet(generated.spatial, theirs)
            self.values[f"{name}_standard_error"] = None
        elif generated.features is not None and "spatial" in generated.features.features:
            features = generated.features.features["spatial"]
            self.estimate(name, lambda: frechet.frechet_of_features(features, theirs))

    def estimate(self, name: str, function: Callable[[], Estimate]) -> None:
        try:
            found = function()
        except FeatureError as reason:
            self.not_computed[name] = str(reason)
            return
        error = found.standard_error
        self.values[name] = found.value
        self.values[f"{name}_standard_error"] = None if math.isnan(error) else error

    def group(self, names: tuple[str, ...], function: Callable[[], tuple[float, ...]]) -> None:
        try:
            self.values.update(zip(names, function(), strict=True))
        except FeatureError as error:
            self.not_computed.update(dict.fromkeys(names, str(error)))


def identical_images(a: Side, b: Side) -> int | None:
    """The number of images of `a` that are pixel for pixel in `b`; None without features."""
    if a.features is None or b.features is None:
        return None
    theirs = {digest.tobytes() for digest in b.features.digests}
    return sum(digest.tobytes() in theirs for digest in a.features.digests)
