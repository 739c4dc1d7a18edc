"""Pearson and Spearman correlations with permutation tests, for `evals.longtail`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

MIN_PAIRS = 4  # three pairs have only six permutations, too few for a small p-value


class Correlation(NamedTuple):
    """A coefficient and its permutation test.

    Attributes:
      value: -1 to 1; NaN if one of the variables is constant.
      p_value: two-sided: the share of permutations whose coefficient is at least as far from
        zero, the observed one included; of all permutations if there are few, else of 9,999
        sampled ones.
    """

    value: float
    p_value: float


def pearson(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Correlation:
    """Linear correlation of x and y, [n] each. Raises ValueError for fewer than MIN_PAIRS pairs."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < MIN_PAIRS:
        raise ValueError(
            f"found {x.shape} and {y.shape} numbers, expected at least {MIN_PAIRS} pairs"
        )
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(float("nan"), float("nan"))
    unit = _unit(y)

    def coefficient(permuted: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.moveaxis(permuted, axis, -1) @ unit

    test = stats.permutation_test(
        (_unit(x),),
        coefficient,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=9999,
        batch=1000,
        rng=np.random.default_rng(seed),
        alternative="greater",
    )
    value = float(test.statistic)
    # Two-sided by absolute value: the distribution over permutations need not be symmetric.
    extreme = np.abs(test.null_distribution) >= abs(value) - 1e-12
    exact = len(test.null_distribution) < 9999
    found = extreme.mean() if exact else (extreme.sum() + 1) / (len(extreme) + 1)
    return Correlation(value, float(found))


def spearman(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Correlation:
    """Rank correlation of x and y, [n] each: `pearson` of the ranks, ties with their mean rank."""
    return pearson(stats.rankdata(x), stats.rankdata(y), seed)


def _unit(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean()
    return centred / np.linalg.norm(centred)
