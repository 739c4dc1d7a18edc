"""All metrics of two sets of images, as far as what is known of them allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from evals.distances import frechet as distances
from evals.distances import kernels, neighbours
from evals.distances.frechet import Estimate
from evals.distances.statistics import FeatureError, Statistics, disjoint
from evals.features.features import FeatureSet

NEIGHBOURS = 10_000  # images of either set that precision and its kin are computed from, at most

# What distances are called when the features are the FID network's, and when they are others.
_NAMES_OF_INCEPTION = {
    "frechet": "fid",
    "frechet_at_infinity": "fid_infinity",
    "spatial": "sfid",
    "kernel": "kid",
    "score": "inception_score",
}
_NAMES_OF_OTHERS = {
    "frechet": "frechet_distance",
    "frechet_at_infinity": "frechet_distance_infinity",
    "spatial": "spatial_frechet_distance",
    "kernel": "kernel_distance",
    "score": "classifier_score",
}


@dataclasses.dataclass(frozen=True)
class Side:
    """A set of images as metrics see it.

    Attributes:
      name: what to call it.
      statistics: of the main features.
      about: what the features are of, see `FeatureSet`; {} if another tool computed them.
      features: None where there are only statistics.
    """

    name: str
    statistics: Statistics
    about: Mapping[str, Any]
    features: FeatureSet | None = None

    @property
    def n(self) -> int | None:
        return self.statistics.n


class Comparison(NamedTuple):
    """The metrics of one set against another.

    Attributes:
      values: by name; `NAME_standard_error` beside those that have one, None if it is not known.
      not_computed: the metrics that are missing, each with the reason.
    """

    values: dict[str, float | None]
    not_computed: dict[str, str]


def names(about: Mapping[str, Any]) -> Mapping[str, str]:
    """What the metrics of such features are called: FID is of the FID network alone."""
    known = about.get("extractor", "inception") == "inception"
    return _NAMES_OF_INCEPTION if known else _NAMES_OF_OTHERS


def require_same_features(a: Side, b: Side) -> list[str]:
    """Refuses two sets whose features are of different networks, weights or resizes.

    Returns warnings: what cannot be checked, because another tool computed the statistics. Raises
    FeatureError that names both sides.
    """
    if a.statistics.mean.shape != b.statistics.mean.shape:
        raise FeatureError(
            f"{a.name} has features of {a.statistics.mean.size} dimensions, {b.name} of "
            f"{b.statistics.mean.size}; compute both with the same --features and --dims"
        )
    unknown = [side.name for side in (a, b) if not side.about]
    if unknown:
        return [
            f"{name} does not say with which weights and resize its features were computed; they "
            "are taken to be those of the other side"
            for name in unknown
        ]
    ours, theirs = _settings(a), _settings(b)
    differing = [
        f"{key} is {ours.get(key)!r} for {a.name} and {theirs.get(key)!r} for {b.name}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if differing:
        raise FeatureError(
            f"the features of both sides are not the same: {'; '.join(differing)}; compute both "
            "with the same settings"
        )
    return []


def _settings(side: Side) -> dict[str, Any]:
    settings = dict(side.about["settings"])
    settings.pop("weights", None)  # the name of a file; its hash decides
    return {"features": side.about["extractor"], "main": side.about["main"], **settings}


def compare(generated: Side, references: Side, most_neighbours: int = NEIGHBOURS) -> Comparison:
    """Everything that can be told of two sets. Metrics that need more images are named.

    Raises FeatureError if the features are not the same, see `require_same_features`.
    """
    require_same_features(generated, references)
    called = names(generated.about or references.about)
    found = _Collected({}, {})
    ours, theirs = generated.features, references.features
    found.frechet(called["frechet"], generated, references)
    if ours is not None:
        found.estimate(
            called["frechet_at_infinity"],
            lambda: distances.frechet_at_infinity(ours.main, references.statistics),
        )
        if "logits" in ours.features:
            found.estimate(
                called["score"], lambda: distances.inception_score(ours.features["logits"])
            )
    if ours is None or theirs is None:
        side = generated.name if ours is None else references.name
        missing = [called["kernel"], "mmd_gaussian", "precision", "recall", "density", "coverage"]
        for name in missing:
            found.not_computed[name] = f"it needs features, and of {side} there are statistics only"
        return Comparison(*found)
    if "spatial" in ours.features and "spatial" in theirs.features:
        found.estimate(
            called["spatial"],
            lambda: distances.frechet_of_features(
                ours.features["spatial"], Statistics.of(theirs.features["spatial"])
            ),
        )
    found.estimate(called["kernel"], lambda: kernels.kid(ours.main, theirs.main))
    found.estimate("mmd_gaussian", lambda: kernels.mmd_gaussian(ours.main, theirs.main))
    few, other = _some(ours.main, most_neighbours), _some(theirs.main, most_neighbours)
    found.several(("precision", "recall"), lambda: neighbours.precision_recall(few, other))
    found.several(("density", "coverage"), lambda: neighbours.density_coverage(few, other))
    return Comparison(*found)


def _some(features: np.ndarray, most: int) -> np.ndarray:
    """The features, or `most` of them at random."""
    if len(features) <= most:
        return features
    return features[disjoint(len(features), -(-len(features) // most))[0]]


class _Collected(NamedTuple):
    values: dict[str, float | None]
    not_computed: dict[str, str]

    def frechet(self, name: str, generated: Side, references: Side) -> None:
        if generated.features is None:
            self.values[name] = distances.frechet(generated.statistics, references.statistics)
            self.values[f"{name}_standard_error"] = None
            return
        features = generated.features.main
        self.estimate(name, lambda: distances.frechet_of_features(features, references.statistics))

    def estimate(self, name: str, function: Callable[[], Estimate]) -> None:
        try:
            found = function()
        except FeatureError as error:
            self.not_computed[name] = str(error)
            return
        uncertain = found.standard_error
        self.values[name] = found.value
        self.values[f"{name}_standard_error"] = None if math.isnan(uncertain) else uncertain

    def several(self, names: tuple[str, ...], function: Callable[[], tuple[float, ...]]) -> None:
        try:
            self.values.update(zip(names, function(), strict=True))
        except FeatureError as error:
            self.not_computed.update(dict.fromkeys(names, str(error)))


def identical_images(a: Side, b: Side) -> int | None:
    """How many images of the first set are, pixel for pixel, in the second; None if not known."""
    if a.features is None or b.features is None:
        return None
    theirs = {digest.tobytes() for digest in b.features.digests}
    return sum(digest.tobytes() in theirs for digest in a.features.digests)
