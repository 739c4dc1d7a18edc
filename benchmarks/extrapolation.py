"""python -m benchmarks.extrapolation: accuracy of the distance at infinitely many images.

Samples of known Gaussians whose standard deviations are 1.1 times those of the references. For
each number of images per dimension it prints the mean of `REPEATS` estimates, their deviation, the
mean standard error, and how often two standard errors hold the truth.
"""

import numpy as np

from evals.distances.extrapolation import frechet_at_infinity
from evals.distances.frechet import frechet
from evals.distances.statistics import Statistics

D = 128
REPEATS = 20


def main() -> None:
    rng = np.random.default_rng(3)
    references = Statistics(np.zeros(D), np.eye(D))
    truth = 0.01 * D
    print(f"truth {truth:.2f}, {D} dimensions, {REPEATS} repeats")
    print("images / d    plain   estimate   deviation   standard error   held by two of them")
    for times in (2, 3, 5, 10, 20):
        sets = [1.1 * rng.standard_normal((times * D, D)) for _ in range(REPEATS)]
        plain = np.mean([frechet(Statistics.of(features), references) for features in sets])
        found = [frechet_at_infinity(features, references) for features in sets]
        values = np.array([each.value for each in found])
        errors = np.array([each.standard_error for each in found])
        held = np.mean(np.abs(values - truth) < 2 * errors)
        print(
            f"{times:10} {plain:8.2f} {values.mean():10.2f} {values.std(ddof=1):11.2f} "
            f"{errors.mean():16.2f} {held:21.0%}"
        )


if __name__ == "__main__":
    main()
