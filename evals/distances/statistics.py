"""Mean and covariance of features in float64, the statistics of a Fréchet distance.

Covariances accumulated in float32 have errors larger than the distances to measure. Everything
here is float64, and features are centred before they are multiplied. `evals.evaluation` caches the
statistics of a set of images in stats.npz.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.utils import npz
from evals.features.base import FeatureError

_ASYMMETRY = 1e-5  # of covariances that were computed in float32, relative to the largest value
_OWN = {"extractor", "main", "settings"}  # members of our metadata
_BLOCK = 8192  # rows in memory as float64 at once


class Statistics:
    """The first two moments of n feature vectors of d dimensions.

    With fewer vectors than dimensions the covariance is singular. It is then stored as a `root`,
    which is smaller and gives the trace term of a distance without loss of accuracy.

    Attributes:
      mean: float64 [d].
      n: number of vectors; None if the file of statistics does not state it.
      root: float64 [r, d] with root.T @ root = covariance and r <= d; or None.
    """

    def __init__(
        self,
        mean: np.ndarray,
        covariance: np.ndarray | None = None,
        *,
        root: np.ndarray | None = None,
        n: int | None = None,
    ):
        """Takes given moments: a covariance [d, d], or a root of it.

        Raises FeatureError for shapes that do not match and values that are not finite.
        """
        self.mean = np.asarray(mean, np.float64)
        self.n = n
        self.root = None if root is None else np.asarray(root, np.float64)
        given = np.asarray(covariance, np.float64) if self.root is None else self.root
        square = self.root is not None or given.shape[:1] == self.mean.shape
        if (
            self.mean.ndim != 1
            or given.ndim != 2
            or given.shape[1:] != self.mean.shape
            or not square
        ):
            raise FeatureError(
                f"found a mean of shape {self.mean.shape} and a covariance of shape {given.shape}, "
                "expected [d] and [d, d]"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(given).all()):
            raise FeatureError("the statistics hold values that are not finite; compute them again")
        if self.root is None:
            self.covariance = given

    @classmethod
    def of(cls, features: np.ndarray) -> Statistics:
        """Of features [n, d], n >= 2. Raises FeatureError for fewer, NaN or infinity."""
        features = check_features(features)
        n, d = features.shape
        mean = features.mean(axis=0, dtype=np.float64)
        if n <= d:
            return cls(mean, root=(features - mean) / np.sqrt(n - 1), n=n)
        scatter, block = np.zeros((d, d)), np.empty((min(n, _BLOCK), d))
        for start in range(0, n, _BLOCK):
            part = features[start : start + _BLOCK]
            centred = np.subtract(part, mean, out=block[: len(part)])
            scatter += centred.T @ centred  # NumPy uses the symmetry: half the work
        return cls(mean, scatter / (n - 1), n=n)

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """With divisor n - 1, float64 [d, d]."""
        assert self.root is not None
        return self.root.T @ self.root

    @functools.cached_property
    def any_root(self) -> np.ndarray:
        """`root`, or else a [d, d] matrix with any_root.T @ any_root = covariance."""
        if self.root is not None:
            return self.root
        try:
            return np.linalg.cholesky(self.covariance).T
        except np.linalg.LinAlgError:  # singular
            values, vectors = np.linalg.eigh(self.covariance)
            return (vectors * np.sqrt(np.clip(values, 0, None))).T

    def merged(self, other: Statistics) -> Statistics:
        """The statistics of the vectors of both.

        Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", 1979. Raises FeatureError if the number of vectors of either is unknown.
        """
        if self.n is None or other.n is None:
            raise FeatureError("statistics of an unknown number of vectors cannot be merged")
        n = self.n + other.n
        step = other.mean - self.mean
        mean = self.mean + step * (other.n / n)
        between = step * np.sqrt(self.n * other.n / n / (n - 1))
        ours, theirs = (self.n - 1) / (n - 1), (other.n - 1) / (n - 1)
        if self.root is not None and other.root is not None:
            rows = [self.root * np.sqrt(ours), other.root * np.sqrt(theirs), between[None]]
            if sum(map(len, rows)) <= mean.size:
                return Statistics(mean, root=np.concatenate(rows), n=n)
        covariance = self.covariance * ours
        covariance += other.covariance * theirs
        covariance += np.outer(between, between)
        return Statistics(mean, covariance, n=n)

    def without(self, part: Statistics) -> Statistics:
        """The statistics without the vectors of `part`, which must be a subset. See `merged`."""
        if self.n is None or part.n is None or self.n - part.n < 2:
            raise FeatureError(f"found {part.n} vectors to remove from {self.n}; 2 must remain")
        n = self.n - part.n
        mean = self.mean + (self.mean - part.mean) * (part.n / n)
        between = (mean - part.mean) * np.sqrt(n * part.n / self.n / (n - 1))
        covariance = self.covariance * ((self.n - 1) / (n - 1))
        covariance -= part.covariance * ((part.n - 1) / (n - 1))
        covariance -= np.outer(between, between)
        return Statistics(mean, covariance, n=n)

    def save(self, path: epath.PathLike, metadata: dict[str, Any]) -> None:
        """Writes an .npz file that pytorch-fid and clean-fid can read (`mu`, `sigma`).

        It also holds `n`, `root` if there is one, and `metadata` as JSON.
        """
        arrays = {
            "mu": self.mean,
            "sigma": self.covariance,
            "metadata": np.array(json.dumps(metadata, allow_nan=False)),
        }
        if self.n is not None:
            arrays["n"] = np.array(self.n)
        if self.root is not None:
            arrays["root"] = self.root
        npz.save(path, arrays)

    @classmethod
    def load(cls, path: epath.PathLike) -> tuple[Statistics, dict[str, Any]]:
        """Reads (statistics, metadata) of an .npz file that `save` or another tool wrote.

        Files of pytorch-fid and clean-fid have no metadata: {}. Those of ADM, which hold mu_s and
        sigma_s too, have the features of its evaluator. Raises FeatureError.
        """
        arrays = npz.load(path, ["mu", "sigma", "n", "root", "metadata"])
        if not {"mu", "sigma"} <= arrays.keys():
            raise FeatureError(
                f"{path} holds {sorted(npz.headers(path))}, expected the arrays mu and sigma of "
                "statistics"
            )
        for name in arrays.keys() & {"mu", "sigma", "root", "n"}:
            if arrays[name].dtype.kind not in "fiu":
                raise FeatureError(
                    f"{path}: {name} is of type {arrays[name].dtype}, expected real numbers"
                )
        n = _count(arrays["n"], path) if "n" in arrays else None
        metadata = _metadata(arrays.get("metadata"))
        try:
            if "root" in arrays:
                return cls(arrays["mu"], root=arrays["root"], n=n), metadata
            found = cls(arrays["mu"], arrays["sigma"], n=n)
            if not metadata:
                _require_covariance(arrays["sigma"])
        except FeatureError as error:
            raise FeatureError(f"{path}: {error}") from None
        return found, metadata

    @classmethod
    def load_spatial(cls, path: epath.PathLike) -> Statistics | None:
        """Reads the statistics of ADM's spatial features (mu_s, sigma_s), for sFID.

        None for a file without them. Raises FeatureError.
        """
        arrays = npz.load(path, ["mu_s", "sigma_s"])
        if len(arrays) < 2:
            return None
        try:
            found = cls(arrays["mu_s"], arrays["sigma_s"])
            _require_covariance(arrays["sigma_s"])
            return found
        except FeatureError as error:
            raise FeatureError(f"{path}, mu_s and sigma_s: {error}") from None


def _count(value: np.ndarray, path: epath.PathLike) -> int:
    if value.shape != () or value < 2 or value != np.rint(value):
        raise FeatureError(f"{path}: n is {value.tolist()}, expected one whole number of 2 or more")
    return int(value)


def _metadata(value: np.ndarray | None) -> dict[str, Any]:
    """What `save` stored; {} for another tool's array of this name."""
    try:
        found = json.loads(str(value))
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.keys() >= _OWN else {}


def _require_covariance(sigma: np.ndarray) -> None:
    """Raises FeatureError for a matrix that is no covariance, by more than its rounding."""
    given = np.asarray(sigma, np.float64)
    largest = np.abs(given).max(initial=0.0)
    if np.abs(given - given.T).max(initial=0.0) > _ASYMMETRY * largest:
        raise FeatureError("sigma is not symmetric, expected a covariance")
    try:
        np.linalg.cholesky(given)
    except np.linalg.LinAlgError:  # singular, or no covariance
        values = np.linalg.eigvalsh(given)
        if values[0] < -_ASYMMETRY * values[-1]:
            raise FeatureError(
                f"sigma has the eigenvalue {values[0]:.3g}, the largest is {values[-1]:.3g}; "
                "expected a covariance, whose eigenvalues are 0 or more"
            ) from None


def check_features(features: np.ndarray, min_count: int = 2) -> np.ndarray:
    """Returns features [n, d]; raises FeatureError unless n >= `min_count` and all are finite."""
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < min_count:
        raise FeatureError(
            f"found features of shape {features.shape}, expected [n, d] with n at least {min_count}"
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        wrong = np.flatnonzero(~finite)
        raise FeatureError(
            f"{wrong.size} of {len(features)} feature vectors hold NaN or infinity, the first is "
            f"number {wrong[0]}; the network or its weights are unusable"
        )
    return features


def disjoint(n: int, parts: int, seed: int = 0) -> list[np.ndarray]:
    """Splits the indices 0..n-1 at random into parts of nearly equal size, ascending in each.

    At random, because images are ordered by class.
    """
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(part) for part in np.array_split(order, parts)]


def jackknife_error(values: np.ndarray) -> float:
    """Standard error from the values with each disjoint part omitted once (Efron, Stein 1981)."""
    count = len(values)
    return float(np.sqrt((count - 1) / count * np.square(values - values.mean()).sum()))
