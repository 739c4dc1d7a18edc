"""The Fréchet distance (FID) with its standard error, and the Inception score.

Everything is computed on the host in float64 and in blocks: 50,000 vectors of 2,048 dimensions
need one block of rows and a few covariances in addition to the features themselves. Functions take
the generated set first and the reference set second; the order matters only where stated.
`evals.metrics` collects the results.

The trace term of the Fréchet distance is computed without a matrix square root. With a root R of
one covariance (R.T @ R = S1), S1 @ S2 has the eigenvalues of the symmetric R @ S2 @ R.T, and if S2
has a root Q, their square roots are the singular values of R @ Q.T.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np

from evals.distances.statistics import Statistics, check_features, disjoint, jackknife_error
from evals.features.base import FeatureError

JACKKNIFE_BLOCKS = 10
_ROUNDING = 1e-12  # of a distance, relative to the sum of its terms


class Estimate(NamedTuple):
    """A number with its standard error.

    Attributes:
      value: the estimate.
      standard_error: of `value`; NaN if there were too few images to estimate it.
      n: number of images, of the smaller set.
    """

    value: float
    standard_error: float
    n: int


def frechet(a: Statistics, b: Statistics) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    With Inception's 2,048 features this is FID (Heusel et al., arXiv 1706.08500). It is symmetric,
    and 0 where no more than rounding is left.
    Raises FeatureError for different numbers of dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise FeatureError(
            f"found features of {a.mean.size} and of {b.mean.size} dimensions; a distance needs "
            "the same features of both sets"
        )
    difference = a.mean - b.mean
    total = float(difference @ difference) + _trace(a) + _trace(b)
    found = total - 2 * trace_of_root(a, b)
    return found if found > _ROUNDING * total else 0.0


def trace_of_root(a: Statistics, b: Statistics) -> float:
    """tr((S1 S2)^(1/2)), the sum of the square roots of the eigenvalues of S1 S2."""
    if a.root is None and b.root is None:
        root = b.any_root
        product = root @ a.covariance @ root.T
        values = np.linalg.eigvalsh((product + product.T) / 2)
        return float(np.sqrt(np.clip(values, 0, None)).sum())
    return float(np.linalg.svd(a.any_root @ b.any_root.T, compute_uv=False).sum())


def _trace(statistics: Statistics) -> float:
    if statistics.root is not None:
        return float(np.square(statistics.root).sum())
    return float(np.trace(statistics.covariance))


def frechet_of_features(
    features: np.ndarray, references: Statistics, blocks: int = JACKKNIFE_BLOCKS
) -> Estimate:
    """Fréchet distance with its standard error over the images of the first set.

    The standard error is the block jackknife's: each of `blocks` disjoint parts is omitted once.
    (A bootstrap, which repeats images, is biased upwards.) It estimates how the distance varies
    over other samples of generated images; the references are fixed.

    Args:
      features: [n, d], float.
      references: of the same features.
      blocks: number of parts; with fewer than two images in each there is no standard error.
    """
    features = check_features(features)
    n = len(features)
    if n < 2 * blocks:
        return Estimate(frechet(Statistics.of(features), references), float("nan"), n)
    parts = [Statistics.of(features[part]) for part in disjoint(n, blocks)]
    whole = functools.reduce(Statistics.merged, parts)
    if whole.root is None:
        remainders = [whole.without(part) for part in parts]
    else:  # few images: the covariance is never formed
        others = [parts[:index] + parts[index + 1 :] for index in range(blocks)]
        remainders = [functools.reduce(Statistics.merged, rest) for rest in others]
    distances = [frechet(remainder, references) for remainder in remainders]
    return Estimate(frechet(whole, references), jackknife_error(np.array(distances)), n)


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 2020) -> Estimate:
    """exp of the mean KL divergence of p(class | image) from p(class), by parts.

    Salimans et al., arXiv 1606.03498. The network's final bias must not be in the logits (the
    original computed them without). Images are shuffled and split as in torch-fidelity.

    Args:
      logits: [n, classes], float.
      splits: number of parts whose scores are averaged; at most n.
      seed: of the shuffle.

    Returns:
      The mean over the parts and its standard error (the usually reported deviation divided by
      the square root of `splits`).
    """
    logits = check_features(logits, min_count=splits)
    order = np.random.RandomState(seed).permutation(len(logits))
    shuffled = np.asarray(logits, np.float64)[order]
    shuffled -= shuffled.max(axis=1, keepdims=True)
    log_p = shuffled - np.log(np.exp(shuffled).sum(axis=1, keepdims=True))
    edges = np.arange(splits + 1) * len(logits) // splits
    scores = np.array([_split_score(log_p[a:b]) for a, b in itertools.pairwise(edges)])
    error = scores.std(ddof=1) / np.sqrt(splits) if splits > 1 else float("nan")
    return Estimate(float(scores.mean()), float(error), len(logits))


def _split_score(log_p: np.ndarray) -> float:
    p = np.exp(log_p)
    return float(np.exp((p * (log_p - np.log(p.mean(0)))).sum(1).mean()))
