"""The Fréchet distance of infinitely many generated images, estimated from a finite number.

The distance of n images is too large by an amount that depends on the model: the eigenvalues of a
sample covariance are more spread than those of the distribution. A line fitted against 1 / n
(Chong, Forsyth, arXiv 1911.07023) removes that only where n is many times the number of
dimensions. Random matrix theory gives the trace term of the distribution from the eigenvalues of
the sample for any n above the number of dimensions. `evals.metrics` reports the result.
"""

from __future__ import annotations

import functools

import numpy as np

from evals.distances.frechet import JACKKNIFE_BLOCKS, Estimate
from evals.distances.statistics import Statistics, check_features, disjoint, jackknife_error
from evals.features.base import FeatureError

_PER_BLOCK = 10  # min images of a block of the jackknife
_NODES = 8  # of the quadrature within each interval
_HALVINGS = 40  # of the logarithm of an interval's width, which begins at 60 bits
_SMALLEST = 1e-13  # eigenvalues below this part of the largest are zero


def frechet_at_infinity(
    features: np.ndarray, references: Statistics, seed: int = 0, blocks: int = JACKKNIFE_BLOCKS
) -> Estimate:
    """Fréchet distance of infinitely many images of the first set.

    The trace term is estimated as by Tiomoko and Couillet ("Random matrix-improved estimation of
    the Wasserstein distance between two centered Gaussian distributions", EUSIPCO 2019), the
    remaining bias is removed by the block jackknife. The bias from the references remains. The
    value may be slightly negative.

    Args:
      features: [n, d], n at least 2 d and 10 times `blocks`.
      references: of the same features.
      seed: of the random blocks.
      blocks: of the jackknife.

    Returns:
      The estimate, with the jackknife's standard error.

    Raises:
      FeatureError: too few images.
    """
    features = check_features(features)
    n, dimensions = features.shape
    least = max(2 * dimensions, _PER_BLOCK * blocks)
    if n < least:
        raise FeatureError(
            f"found {n} images, expected at least {least} (twice the {dimensions} dimensions, and "
            f"{_PER_BLOCK * blocks}) to extrapolate to infinitely many"
        )
    parts = [Statistics.of(features[part]) for part in disjoint(n, blocks, seed)]
    whole = functools.reduce(Statistics.merged, parts)
    value = _unbiased(whole, references)
    without = np.array([_unbiased(whole.without(part), references) for part in parts])
    corrected = blocks * value - (blocks - 1) * without.mean()
    return Estimate(float(corrected), jackknife_error(without), n)


def _unbiased(sample: Statistics, references: Statistics) -> float:
    assert sample.n is not None
    difference = sample.mean - references.mean
    root = references.any_root
    product = root @ sample.covariance @ root.T
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    total = np.trace(sample.covariance)
    # The squared difference of the means is too large by the variance of the sample's mean.
    means = difference @ difference - total / sample.n
    trace = trace_of_root(eigenvalues, sample.n - 1)
    return float(means + total + np.square(root).sum() - 2 * trace)


def trace_of_root(eigenvalues: np.ndarray, n: int) -> float:
    """tr(S^(1/2)) of a population, from the eigenvalues of a sample covariance.

    With m(x) = (sum_j 1 / (l_j - x) - (n - p) / x) / n, the companion Stieltjes transform of the p
    eigenvalues l_j > 0, it is 2 n / pi times the sum over i of the integral of sqrt(m) from its
    zero below l_i to l_i. The integrand has a root at the zero and a pole of order 1/2 at l_i: the
    Gauss quadrature of that weight (Chebyshev's of the third kind) is used.

    Args:
      eigenvalues: of the sample covariance, float64 [d]; zeros do not count.
      n: degrees of freedom, more than the number of positive eigenvalues.
    """
    values = np.sort(np.asarray(eigenvalues, np.float64))
    values = values[values > values[-1] * _SMALLEST]
    p = len(values)
    distances = values[None, :] - values[:, None]
    gaps = np.diff(values, prepend=0.0)

    def transform(below: np.ndarray) -> np.ndarray:
        """m at l_i - below_i for every i, [p]."""
        with np.errstate(divide="ignore"):
            inverse = 1 / (distances + below[:, None])
        return (inverse.sum(1) - (n - p) / np.maximum(values - below, np.finfo(float).tiny)) / n

    low, high = np.full(p, -60.0), np.zeros(p)  # binary logarithms of (l_i - zero) / gap
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above_zero = transform(gaps * np.exp2(middle)) > 0
        low, high = np.where(above_zero, middle, low), np.where(above_zero, high, middle)
    widths = gaps * np.exp2((low + high) / 2)
    number = np.arange(1, _NODES + 1)
    nodes = np.cos((2 * number - 1) * np.pi / (2 * _NODES + 1))
    weights = 2 * np.pi / (2 * _NODES + 1) * (1 + nodes)
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        heights = np.sqrt(np.maximum(transform(widths * (1 - node) / 2), 0))
        heights = np.where(widths > 0, heights, 0)  # equal eigenvalues
        total += weight * np.sqrt((1 - node) / (1 + node)) * float((heights * widths).sum() / 2)
    return 2 * n / np.pi * total
