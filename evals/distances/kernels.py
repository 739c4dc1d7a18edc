"""Kernel distances (MMD): KID, and the Gaussian kernel of CMMD. `evals.metrics` collects them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evals.distances.frechet import JACKKNIFE_BLOCKS, Estimate
from evals.distances.statistics import check_features, disjoint, jackknife_error
from evals.features.base import FeatureError

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Images of a group, within which all pairs are evaluated: time is proportional to n x this.
GROUP_SIZE = 5000
_SIGMA, _SCALE = 10.0, 1000.0  # of CMMD
# (features, architecture) that CMMD is defined with.
CMMD_NETWORK = ("clip", "ViT-L/14-336")


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """KID's kernel (x . y / d + 1)^3, [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2)), [n, m]."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * (x @ y.T)
        return np.exp(-squares / (2 * sigma**2))

    return kernel


def kid(features: np.ndarray, references: np.ndarray) -> Estimate:
    """Kernel Inception distance: the unbiased squared MMD with the polynomial kernel.

    Bińkowski et al., arXiv 1801.01401. It may be slightly negative. Other tools average it over
    100 random subsets of 1,000 images, which has the same expectation but not the same value, and
    report the deviation over the subsets, which is not a standard error.

    Args:
      features: [n, d], n >= 2.
      references: [m, d], m >= 2.

    Returns:
      The U-statistic of all images (above 5,000 images: the mean over disjoint groups), with the
      block jackknife's standard error over both sets.
    """
    return _unbiased_mmd(check_features(features), check_features(references), polynomial)


def mmd_gaussian(
    features: np.ndarray, references: np.ndarray, sigma: float = _SIGMA, scale: float = _SCALE
) -> Estimate:
    """Squared MMD with a Gaussian kernel over features of unit length, times `scale`.

    With CLIP's image embeddings this is CMMD, but unbiased: see `cmmd`.
    """
    estimate = _unbiased_mmd(_unit(features), _unit(references), gaussian(sigma))
    return Estimate(estimate.value * scale, estimate.standard_error * scale, estimate.n)


def cmmd(features: np.ndarray, references: np.ndarray) -> Estimate:
    """CMMD: 1,000 times the squared MMD of unit vectors, Gaussian kernel of sigma 10.

    Jayasumana et al., arXiv 2401.09603, and google-research/cmmd: the minimum-variance estimate,
    which keeps the kernel of each vector with itself. That adds about 1,000 (1 - E k) (1/n + 1/m)
    to the unbiased `mmd_gaussian`, whose standard error is taken for it.

    Args:
      features: [n, d], n >= 2: projected image embeddings of CLIP ViT-L/14-336.
      references: [m, d], m >= 2.
    """
    x, y = _unit(features), _unit(references)
    if x.shape[1] != y.shape[1]:
        raise FeatureError(f"found features of {x.shape[1]} and of {y.shape[1]} dimensions")
    kernel = gaussian(_SIGMA)

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        starts = range(0, len(a), GROUP_SIZE), range(0, len(b), GROUP_SIZE)
        sums = [
            kernel(a[i : i + GROUP_SIZE], b[j : j + GROUP_SIZE]).sum()
            for i in starts[0]
            for j in starts[1]
        ]
        return float(sum(sums)) / (len(a) * len(b))

    value = _SCALE * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    unbiased = mmd_gaussian(features, references)
    return Estimate(value, unbiased.standard_error, unbiased.n)


def _unbiased_mmd(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> Estimate:
    if x.shape[1] != y.shape[1]:
        raise FeatureError(f"found features of {x.shape[1]} and of {y.shape[1]} dimensions")
    fewer, more = sorted((len(x), len(y)))
    count = min(-(-more // GROUP_SIZE), fewer // 2)
    groups = [
        _mmd_of_group(x[ours], y[theirs], kernel)
        for ours, theirs in zip(disjoint(len(x), count), disjoint(len(y), count), strict=True)
    ]
    values, errors = np.array(groups).T
    return Estimate(float(values.mean()), float(np.sqrt(np.square(errors).sum()) / count), fewer)


def _mmd_of_group(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> tuple[float, float]:
    """(unbiased squared MMD, its jackknife standard error).

    Both are computed from the sums of the kernel over pairs of blocks, so that omitting a block
    costs nothing.
    """
    blocks = min(JACKKNIFE_BLOCKS, len(x) // 2, len(y) // 2)
    of_x = [np.asarray(x[part], np.float64) for part in disjoint(len(x), blocks)]
    of_y = [np.asarray(y[part], np.float64) for part in disjoint(len(y), blocks)]
    n, m = np.array(list(map(len, of_x))), np.array(list(map(len, of_y)))
    within_x = _sums(of_x, of_x, kernel) - np.diag([_diagonal(block, kernel) for block in of_x])
    within_y = _sums(of_y, of_y, kernel) - np.diag([_diagonal(block, kernel) for block in of_y])
    across = _sums(of_x, of_y, kernel)

    def mmd(kept: np.ndarray) -> float:
        pairs, a, b = np.ix_(kept, kept), n[kept].sum(), m[kept].sum()
        own = within_x[pairs].sum() / (a * (a - 1)) + within_y[pairs].sum() / (b * (b - 1))
        return float(own - 2 * across[pairs].sum() / (a * b))

    all_blocks = np.arange(blocks)
    if blocks < 3:
        return mmd(all_blocks), float("nan")
    without_block = np.array([mmd(np.delete(all_blocks, block)) for block in range(blocks)])
    return mmd(all_blocks), jackknife_error(without_block)


def _sums(x: list[np.ndarray], y: list[np.ndarray], kernel: Kernel) -> np.ndarray:
    """Sums of the kernel over all pairs, for each pair of blocks."""
    return np.array([[kernel(a, b).sum() for b in y] for a in x])


def _diagonal(block: np.ndarray, kernel: Kernel) -> float:
    """Sum of the kernel of each vector with itself."""
    return float(np.trace(kernel(block, block)))


def _unit(features: np.ndarray) -> np.ndarray:
    rows = np.asarray(check_features(features), np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
