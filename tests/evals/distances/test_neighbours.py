"""Precision, recall, density and coverage follow their definitions, also where distances tie."""

import numpy as np
import pytest

from evals.distances.neighbours import density_coverage, precision_recall


def by_definition(x, y, k):
    """(precision, recall, density, coverage) with balls that include their surface."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def squares(a, b):
        return np.square(a[:, None] - b[None]).sum(2)

    def radii(a):
        return np.sort(squares(a, a), axis=1)[:, k]  # column 0 is the vector itself

    inside = squares(x, y) <= radii(y)
    return (
        inside.any(1).mean(),
        (squares(y, x) <= radii(x)).any(1).mean(),
        inside.sum() / (k * len(x)),
        inside.any(0).mean(),
    )


def sets(seed):
    """Two sets: random, whole numbers with many ties, or whole numbers scaled and far from 0."""
    rng = np.random.default_rng(seed)
    n, m, d = rng.integers(5, 15), rng.integers(5, 15), rng.integers(1, 5)
    if seed % 3 == 0:
        return rng.standard_normal((n, d), np.float32), rng.standard_normal((m, d), np.float32)
    x, y = (rng.integers(0, 4, (count, d)).astype(np.float32) for count in (n, m))
    return (x, y) if seed % 3 == 1 else (x * np.float32(0.1) + 7, y * np.float32(0.1) + 7)


def test_a_thousand_random_and_tied_sets_equal_the_definition():
    ties = 0
    for seed in range(1000):
        x, y = sets(seed)
        k = 1 + seed % 4
        expected = by_definition(x, y, k)
        found = *precision_recall(x, y, k), *density_coverage(x, y, k)
        assert found == pytest.approx(expected, abs=1e-12), f"sets of seed {seed}"
        ties += len(np.unique(np.square(x[:, None] - y[None]).sum(2))) < len(x) * len(y)
    assert ties > 600


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_ties_in_many_dimensions_are_not_decided_by_rounding(scale):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 2, (60, 200)).astype(np.float32) * np.float32(scale) for _ in range(2))
    found = *precision_recall(x, y, 3), *density_coverage(x, y, 3)
    assert found == pytest.approx(by_definition(x, y, 3), abs=1e-12)
