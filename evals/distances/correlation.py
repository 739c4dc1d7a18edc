"""Do two numbers of the same classes go together? Correlations, and what chance makes of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

LEAST = 4  # classes: three have six orders, and no order of six is rare


class Correlation(NamedTuple):
    """A coefficient and its permutation test.

    Attributes:
      value: -1 to 1; NaN where one of the numbers is the same for all.
      p_value: part of the orders of one of the numbers that give a coefficient as far from zero,
        the order that was found among them; of all orders where there are few, else of 9,999 at
        random.
    """

    value: float
    p_value: float


def pearson(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Correlation:
    """Whether they lie on a straight line. Raises ValueError for fewer than LEAST pairs."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < LEAST:
        raise ValueError(f"found {x.shape} and {y.shape} numbers, expected at least {LEAST} pairs")
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
    # Two-sided: the distribution over permutations need not be symmetric.
    extreme = np.abs(test.null_distribution) >= abs(value) - 1e-12
    exact = len(test.null_distribution) < 9999
    found = extreme.mean() if exact else (extreme.sum() + 1) / (len(extreme) + 1)
    return Correlation(value, float(found))


def spearman(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Correlation:
    """Whether they have the same order: `pearson` of the ranks, equal ones sharing theirs."""
    return pearson(stats.rankdata(x), stats.rankdata(y), seed)


def _unit(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean()
    return centred / np.linalg.norm(centred)
