"""Time and memory of the Fréchet distance of 50,000 x 2,048 features, compared with SciPy's.

    python -m benchmarks.distances [--images=50000] [--dims=2048]

The baseline (pytorch-fid, clean-fid, ADM) is `numpy.cov` of the features in float64 and
`scipy.linalg.sqrtm` of the product. Ours is `Statistics.of` and `frechet` of the same float32
features. Each runs in a separate process, to measure its peak memory, which includes the features
themselves (0.4 GB per set). The block jackknife and other metrics are measured without a baseline.
Writes `benchmarks/results/distances.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.utils.cpus import num_cpus

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "distances.json"


def random_features(n: int, d: int, seed: int) -> np.ndarray:
    """Random features that are correlated and non-negative like Inception's, float32 [n, d]."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)).astype(np.float32) / np.sqrt(d)
    features = np.empty((n, d), np.float32)
    for part in np.array_split(features, max(n // 4096, 1)):
        part[:] = np.maximum(rng.standard_normal(part.shape, np.float32) @ mixing + 0.3, 0)
    return features


def ours(n: int, d: int) -> dict[str, float]:
    from evals.distances.frechet import frechet, frechet_of_features
    from evals.distances.statistics import Statistics

    x, y = random_features(n, d, 1), random_features(n, d, 2)
    seconds: dict[str, float] = {}
    a = timed(seconds, "statistics of both", lambda: (Statistics.of(x), Statistics.of(y)))
    seconds["value"] = timed(seconds, "distance", lambda: frechet(*a))
    seconds["peak_gb"] = peak()
    timed(seconds, "distance with jackknife", lambda: frechet_of_features(x, a[1]))
    return seconds


def baseline(n: int, d: int) -> dict[str, float]:
    import scipy.linalg

    x, y = random_features(n, d, 1), random_features(n, d, 2)
    seconds: dict[str, float] = {}

    def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        doubled = features.astype(np.float64)
        return doubled.mean(0), np.cov(doubled, rowvar=False)

    (m1, s1), (m2, s2) = timed(seconds, "statistics of both", lambda: (moments(x), moments(y)))

    def distance() -> float:
        root = scipy.linalg.sqrtm(s1 @ s2)
        return float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - 2 * root.real.trace())

    seconds["value"] = timed(seconds, "distance", distance)
    seconds["peak_gb"] = peak()
    return seconds


def other_metrics(n: int, d: int) -> dict[str, float]:
    from evals.distances import kernels, neighbours

    x, y = random_features(n, d, 1), random_features(n, d, 2)
    seconds: dict[str, float] = {}
    timed(seconds, "kid", lambda: kernels.kid(x, y))
    few = min(n, 10_000)
    timed(seconds, "precision_recall", lambda: neighbours.precision_recall(x[:few], y[:few]))
    seconds["peak_gb"] = peak()
    return seconds


def timed(seconds: dict[str, float], name: str, function: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = function()
    seconds[f"{name}, seconds"] = time.perf_counter() - start
    return result


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def in_process(
    function: Callable[[int, int], dict[str, float]], n: int, d: int
) -> dict[str, float]:
    """Calls a function in a separate process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(function, n, d).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--dims", type=int, default=2048)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name, function in (
        ("ours", ours),
        ("baseline", baseline),
        ("other_metrics", other_metrics),
    ):
        found[name] = in_process(function, args.images, args.dims)
        print(name, json.dumps(found[name]), flush=True)
    total = {
        name: sum(found[name][f"{part}, seconds"] for part in ("statistics of both", "distance"))
        for name in ("ours", "baseline")
    }
    result = {
        "command": f"python -m benchmarks.distances --images={args.images} --dims={args.dims}",
        "machine": f"{platform.machine()}, {num_cpus()} cores, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in ("numpy", "scipy")},
        **found,
        "total_seconds": total,
        "ours_over_baseline": total["ours"] / total["baseline"],
        "relative_difference_of_values": found["ours"]["value"] / found["baseline"]["value"] - 1,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("total_seconds", "ours_over_baseline")}))


if __name__ == "__main__":
    main()
