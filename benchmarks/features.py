"""Speed of the FID network, compared with the same network in PyTorch on the same cores.

    python -m benchmarks.features [--images=64] [--rounds=3]

Features of 2,048 dimensions, spatial features and logits, with random weights, on which speed does
not depend. Images are random, 299 x 299. The baseline is torch-fidelity's network (its requirements
are in tests/golden/inception/reference.py), without its resize, in batches of 8 and of 32, the
faster of which counts. Each measurement runs in a separate process, alternating between the two;
the result is the median of the rounds. "end_to_end" is the whole extraction from JPEG files of
256 x 256 with `evals.features.features.extract`. Writes `benchmarks/results/features.json`.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.utils.cpus import num_cpus

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "features.json"
CORES = num_cpus()


def random_extractor() -> Any:
    """The FID network with random weights, on as many devices as there are cores."""
    from jpeglm_jax.parallel import sharding

    sharding.split_cpu(CORES)
    from evals.features import extractors, inception
    from evals.features.weights import Weights

    sys.path.insert(0, str(ROOT / "tests" / "golden" / "inception"))
    weights = __import__("weights")
    needed = inception.required(["2048", "spatial", "logits"])
    tensors = {name: weights.draw(name, shape) for name, shape in needed.items()}
    return extractors.fid_inception(Weights(tensors, "0" * 64, "random"))


def ours(images: int) -> float:
    """Images per second, in batches of 32."""
    apply = random_extractor().apply
    batch = np.random.default_rng(0).uniform(-1, 1, (32, 299, 299, 3)).astype(np.float32)
    return images_per_second(lambda: apply(batch), 32, images)


def baseline(images: int) -> float:
    """Images per second of torch-fidelity's network, in the faster of two batch sizes."""
    import torch

    torch.set_num_threads(CORES)
    sys.path.insert(0, str(ROOT / "tests" / "golden" / "inception"))
    network = __import__("reference").network(__import__("weights").draw)
    speeds = []
    for size in (8, 32):
        batch = torch.randint(0, 256, (size, 3, 299, 299), dtype=torch.uint8)
        with torch.no_grad():
            speeds.append(images_per_second(functools.partial(network, batch), size, images))
    return max(speeds)


def end_to_end(images: int) -> float:
    """Images per second from files to features on disk; compilation is not timed."""
    from evals.features import features
    from evals.inputs.images import open_images

    extractor = random_extractor()
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for number in range(images):
            blocks = rng.integers(0, 256, (16, 16, 3), np.uint8).repeat(16, 0).repeat(16, 1)
            buffer = io.BytesIO()
            Image.fromarray(blocks).save(buffer, "JPEG")
            (Path(folder) / f"{number}.jpg").write_bytes(buffer.getvalue())
        extractor.apply(np.zeros((32, 299, 299, 3), np.float32))
        start = time.perf_counter()
        features.extract(open_images(folder), extractor, Path(folder) / "out")
        return images / (time.perf_counter() - start)


def images_per_second(run: Callable[[], Any], size: int, images: int) -> float:
    run()
    batches = max(images // size, 1)
    start = time.perf_counter()
    for _ in range(batches):
        run()
    return batches * size / (time.perf_counter() - start)


def in_process(function: Callable[[int], float], images: int) -> float:
    """Calls a function in a separate process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(function, images).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    speeds: dict[str, list[float]] = {"ours": [], "torch": [], "end_to_end": []}
    for _ in range(args.rounds):
        for name, function in (("ours", ours), ("torch", baseline), ("end_to_end", end_to_end)):
            speeds[name].append(in_process(function, args.images))
            print(name, round(speeds[name][-1], 2), "images/s", flush=True)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    result = {
        "command": f"python -m benchmarks.features --images={args.images} --rounds={args.rounds}",
        "machine": f"{platform.machine()}, {CORES} cores, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in ("jax", "torch", "torch-fidelity")},
        "images_per_second": speeds,
        "median": median,
        "ours_over_torch": median["ours"] / median["torch"],
        "end_to_end_over_torch": median["end_to_end"] / median["torch"],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("median", "ours_over_torch")}))


if __name__ == "__main__":
    main()
