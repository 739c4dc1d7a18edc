"""Precision and recall, density and coverage of a generated set against a reference set.

Each image of a set is the centre of a ball whose radius is the distance to its k-th nearest
neighbour in the same set.

  precision   share of generated images inside the ball of any reference: fidelity
  recall      share of references inside the ball of any generated image: diversity
  density     number of reference balls that contain a generated image, divided by k
  coverage    share of references whose ball contains a generated image

A model that repeats one good image has precision 1 and recall near 0. `evals.metrics` collects
the results.

`nearest` and `authenticity` compare single images, to find copies; `evals.gallery` uses them.

Kynkäänniemi et al., arXiv 1904.06991 (k = 3); Naeem et al., arXiv 2002.09797 (k = 5);
Alaa et al., arXiv 2102.08921 (authenticity).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evals.distances.statistics import check_features
from evals.features.base import FeatureError

_BLOCK = 1024  # rows of the distance matrix in memory at once
_ROUNDING = 1e-12  # of squared distances, relative to the largest
_MAX_WHOLE = 2.0**50
_REFERENCES = 16_384  # of its columns, where there may be millions


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


def precision_recall(generated: np.ndarray, references: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Of features [n, d] and [m, d]. Raises FeatureError unless n and m exceed k."""
    inside_references = _inside(generated, references, _radii(references, k))
    inside_generated = _inside(references, generated, _radii(generated, k))
    return PrecisionRecall(
        float(np.mean(inside_references.balls > 0)), float(np.mean(inside_generated.balls > 0))
    )


def density_coverage(generated: np.ndarray, references: np.ndarray, k: int = 5) -> DensityCoverage:
    """Of features [n, d] and [m, d]. Raises FeatureError unless m exceeds k."""
    found = _inside(generated, references, _radii(references, k))
    return DensityCoverage(float(found.balls.mean() / k), float(np.mean(found.points > 0)))


class Nearest(NamedTuple):
    """The nearest references of each vector: their indices, [n, k], and distances, [n, k]."""

    indices: np.ndarray
    distances: np.ndarray


def nearest(points: np.ndarray, references: np.ndarray, k: int) -> Nearest:
    """The k nearest references of each point, nearest first, by Euclidean distance.

    Args:
      points: [n, d].
      references: [m, d], m >= k.
      k: 1 or more.

    Raises FeatureError for fewer references than k.
    """
    if len(references) < k:
        raise FeatureError(f"found {len(references)} references, expected at least {k}")
    best = Nearest(np.zeros((len(points), 0), np.int64), np.zeros((len(points), 0)))
    for start in range(0, len(references), _REFERENCES):
        rows = _squared_distances(points, references[start : start + _REFERENCES])
        found = [_smallest(squares, min(k, squares.shape[1])) for squares in rows]
        indices = np.concatenate(
            [best.indices, start + np.concatenate([one[0] for one in found])], 1
        )
        squares = np.concatenate([best.distances, np.concatenate([one[1] for one in found])], 1)
        order, smallest = _smallest(squares, min(k, squares.shape[1]))
        best = Nearest(np.take_along_axis(indices, order, 1), smallest)
    return Nearest(best.indices, np.sqrt(best.distances))


def _smallest(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(columns, values) of the k smallest values of each row, ascending."""
    columns = np.argpartition(values, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(values, columns, 1)
    order = np.argsort(found, axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1), np.take_along_axis(found, order, 1)


def authenticity(generated: np.ndarray, references: np.ndarray) -> float:
    """The share of generated images that are no closer to a reference than other references are.

    An image counts if its distance to its nearest reference exceeds the distance of that reference
    to its own nearest other reference. Copies of references give 0, images of the same
    distribution about 0.5, other images up to 1.

    Args:
      generated: features [n, d].
      references: features [m, d], m >= 2: the training images, if copies of these are looked for.

    Raises FeatureError for fewer references than two.
    """
    found = nearest(generated, references, 1)
    radii = np.sqrt(_radii(references, 1))
    return float(np.mean(found.distances[:, 0] > radii[found.indices[:, 0]]))


def nearest_other(features: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The distances of some of the vectors [n, d], n >= 2, each to its nearest other one."""
    found = nearest(features[indices], features, 2)
    itself = found.indices[:, 0] == indices  # not the first if another vector is the same
    return np.where(itself, found.distances[:, 1], found.distances[:, 0])


class _Inside(NamedTuple):
    """Counts: balls that each point lies in, [n]; points that lie in each ball, [m]."""

    balls: np.ndarray
    points: np.ndarray


def _inside(points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> _Inside:
    balls, counts = [], np.zeros(len(centres), np.int64)
    start = 0
    for squares in _squared_distances(points, centres):
        rows = points[start : start + len(squares)]
        start += len(squares)
        inside = _settled(squares, squared_radii, rows, centres) <= squared_radii
        balls.append(inside.sum(1))
        counts += inside.sum(0)
    return _Inside(np.concatenate(balls), counts)


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each vector to its k-th nearest other one, [n]."""
    features = check_features(features, min_count=1)
    if len(features) <= k:
        raise FeatureError(
            f"found {len(features)} images, expected more than {k} for the distance to the "
            f"{k}-th nearest neighbour"
        )
    # The nearest vector is the vector itself, at distance zero.
    radii: list[np.ndarray] = []
    start = 0
    for squares in _squared_distances(features, features):
        rows = features[start : start + len(squares)]
        start += len(squares)
        near = np.partition(squares, k, axis=1)[:, k, None]
        settled = _settled(squares, near, rows, features)
        radii.append(np.partition(settled, k, axis=1)[:, k])
    return np.concatenate(radii)


def _settled(
    squares: np.ndarray, thresholds: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Squared distances, those near a threshold computed from the differences of the vectors.

    A distance equal to a radius is inside the ball, which the rounding of products would decide.

    Args:
      squares: of x and y, [n, m]; changed.
      thresholds: that they are compared with, broadcast to [n, m].
      x, y: the vectors, [n, d] and [m, d].
    """
    if _are_exact(x, y):
        return squares
    # Rounding is relative to the squares of the centred vectors, at most the largest distances.
    near = np.abs(squares - thresholds) <= _ROUNDING * squares.max(initial=0)
    rows, columns = np.nonzero(near)
    for start in range(0, len(rows), _BLOCK):
        i, j = rows[start : start + _BLOCK], columns[start : start + _BLOCK]
        squares[i, j] = np.square(x[i].astype(np.float64) - y[j]).sum(1)
    return squares


def _are_exact(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether products of the vectors are exact: whole numbers, of which float64 holds all."""
    for vectors in (x, y):
        if np.abs(vectors).max() ** 2 * vectors.shape[1] >= _MAX_WHOLE:
            return False
        if (vectors != np.rint(vectors)).any():
            return False
    return True


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of rows of the matrix of squared distances, float64."""
    x, y = check_features(x, min_count=1), check_features(y, min_count=1)
    if x.shape[1] != y.shape[1]:
        raise FeatureError(f"found features of {x.shape[1]} and of {y.shape[1]} dimensions")
    # Centring keeps the differences of large squares accurate.
    whole = _are_exact(x, y)
    origin = np.zeros(y.shape[1]) if whole else y.mean(0, dtype=np.float64)
    centred = y - origin
    squares = np.square(centred).sum(1)
    for start in range(0, len(x), _BLOCK):
        rows = x[start : start + _BLOCK] - origin
        found = np.square(rows).sum(1)[:, None] + squares - 2 * (rows @ centred.T)
        yield np.maximum(found, 0)
