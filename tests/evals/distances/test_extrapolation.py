"""The distance at infinitely many images: right from two images per dimension, with its error."""

import numpy as np
import pytest

from evals.distances.extrapolation import frechet_at_infinity, trace_of_root
from evals.distances.frechet import frechet
from evals.distances.statistics import Statistics
from evals.features.base import FeatureError

D = 50
SCALES = np.arange(1, D + 1) ** -0.75  # standard deviations
REFERENCES = Statistics(np.zeros(D), np.diag(SCALES**2))


def isotropic(rng, n):
    """Standard deviations are 1.1 times too large."""
    return rng.standard_normal((n, D)) * SCALES * 1.1, 0.01 * np.square(SCALES).sum()


def shifted(rng, n):
    return rng.standard_normal((n, D)) * SCALES + 0.05, D * 0.05**2


def heavy_tailed(rng, n):
    """Scale mixtures of variance 1: what random matrix theory for Gaussians does not cover."""
    scale = np.sqrt(rng.gamma(4, 1 / 4, n))[:, None]
    return rng.standard_normal((n, D)) * SCALES * 1.3 * scale, 0.09 * np.square(SCALES).sum()


@pytest.mark.parametrize("sample", [isotropic, shifted, heavy_tailed])
@pytest.mark.parametrize("times", [2, 5, 10])
def test_the_value_is_right_and_the_error_holds(sample, times):
    rng = np.random.default_rng(times)
    found, plain = [], []
    for seed in range(40):
        features, truth = sample(rng, times * D)
        found.append(frechet_at_infinity(features, REFERENCES, seed=seed))
        plain.append(frechet(Statistics.of(features), REFERENCES))
    values = np.array([each.value for each in found])
    errors = np.array([each.standard_error for each in found])
    deviation = values.std(ddof=1)
    # The mean of 40 is within three of its own errors, and far closer than the plain distance.
    assert abs(values.mean() - truth) < 3 * deviation / 40**0.5
    assert abs(values.mean() - truth) < 0.5 * abs(np.mean(plain) - truth)
    # Two standard errors hold the truth about 95 times of 100; five misses of 40 are 2 %.
    assert np.sum(np.abs(values - truth) < 2 * errors) >= 34
    assert 0.7 * deviation < errors.mean() < 2 * deviation


def test_the_trace_of_a_known_population_is_recovered():
    """The sample's own trace is far too small at two vectors per dimension."""
    rng = np.random.default_rng(0)
    scales = np.linspace(0.2, 2, 200)
    sample = np.cov((rng.standard_normal((400, 200)) * scales).T)
    eigenvalues = np.linalg.eigvalsh(sample)
    truth = scales.sum()
    assert np.sqrt(eigenvalues).sum() < 0.95 * truth
    assert trace_of_root(eigenvalues, 399) == pytest.approx(truth, rel=0.005)
    # Zeros do not count; equal eigenvalues and many vectors give the plain trace.
    assert trace_of_root(np.append(eigenvalues, 0.0), 399) == pytest.approx(truth, rel=0.005)
    assert trace_of_root(np.full(3, 4.0), 10**7) == pytest.approx(6.0, rel=1e-3)
    assert trace_of_root(np.zeros(2), 10) == 0


def test_too_few_images_are_refused():
    features = np.random.default_rng(0).standard_normal((2 * D, D))
    assert np.isfinite(frechet_at_infinity(features, REFERENCES).value)
    with pytest.raises(FeatureError, match=f"found {2 * D - 1} images, expected at least {2 * D}"):
        frechet_at_infinity(features[1:], REFERENCES)
