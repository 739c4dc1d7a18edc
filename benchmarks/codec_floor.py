"""Distances between real images and the same images after the codec, at several qualities.

    python -m benchmarks.codec_floor [--images=150] [--weights=FILE] [--dims=768]

Photos at 256 x 256 and CIFAR-10's test images at 32 x 32 are encoded as JPEG at quality 75, 25, 10
and 5 (4:2:0, a restart marker after each MCU), decoded, and compared with the same images before
encoding. This is the floor of FID for models of these files. The CIFAR-10 files are JPEG at quality
75 already; that loss is not part of the result. The features are those of the FID network, of 768
dimensions unless --weights and --dims give others. Writes `benchmarks/results/codec_floor.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from data_pipelines import representations
from data_pipelines.utils.cpus import num_cpus
from evals import metrics
from evals.distances.statistics import Statistics
from evals.features import extractors
from evals.features.base import Extractor
from evals.features.features import extract
from evals.inputs.images import FittedImages, Images, open_images
from evals.metrics import Side
from jpeglm_jax.parallel import sharding

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks" / "results" / "codec_floor.json"
WEIGHTS = SHARED / "weights" / "inception_2015_12_05_to_mixed_6e.safetensors"
QUALITIES = (75, 25, 10, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=150, help="images of each set")
    parser.add_argument("--weights", default=str(WEIGHTS))
    parser.add_argument("--dims", type=int, default=768)
    args = parser.parse_args()
    sharding.split_cpu(num_cpus())
    extractor = extractors.make("inception", weights=args.weights, dims=args.dims)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, copy, size in (("photos", copy_photos, 256), ("cifar10", copy_cifar10, 32)):
            source = Path(folder) / name
            source.mkdir()
            copy(source, args.images)
            results[name] = floors(open_images(str(source)), size, extractor, Path(folder))
            print(name, json.dumps(results[name]), flush=True)
    command = f"python -m benchmarks.codec_floor --images={args.images} --dims={args.dims}"
    result = {
        "command": command,
        "machine": f"{platform.machine()}, {num_cpus()} cores, Python {platform.python_version()}",
        "settings": dict(extractor.settings),
        **results,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def floors(images: Images, size: int, extractor: Extractor, out: Path) -> dict[str, Any]:
    """The metrics of images after the codec compared with before, by quality."""
    found: dict[str, Any] = {}
    start = time.perf_counter()
    plain = None
    for quality in QUALITIES:
        representation = representations.make("jpeg", size=size, quality=quality)
        if plain is None:  # the same pixels for every quality
            fitted = FittedImages(images, representation, coded=False)
            plain = features_of(fitted, extractor, out / f"plain{size}")
        decoded = FittedImages(images, representation, coded=True)
        coded = features_of(decoded, extractor, out / f"coded{size}-{quality}")
        values = metrics.compare(coded, plain).values
        kept = ("fid", "fid_standard_error", "kid", "kid_standard_error", "precision", "recall")
        found[f"quality {quality}"] = {name: values[name] for name in kept}
    return {"images": plain.n if plain else 0, "seconds": time.perf_counter() - start, **found}


def features_of(images: Images, extractor: Extractor, folder: Path) -> Side:
    found = extract(images, extractor, folder)
    return Side(images.name, Statistics.of(found.main), found.metadata, found)


def copy_photos(folder: Path, count: int) -> None:
    """Copies photos, evenly from all classes."""
    paths = sorted((SHARED / "data" / "photos" / "clothing").rglob("*.jpg"))
    for number, path in enumerate(paths[:: max(len(paths) // count, 1)][:count]):
        (folder / f"{number}.jpg").write_bytes(path.read_bytes())


def copy_cifar10(folder: Path, count: int) -> None:
    with tarfile.open(SHARED / "data" / "cifar10" / "cifar10-test.tar.xz") as tar:
        members = [member for member in tar if member.isfile() and member.name.endswith(".jpg")]
        for number, member in enumerate(members[:: max(len(members) // count, 1)][:count]):
            file = tar.extractfile(member)
            assert file is not None
            (folder / f"{number}.jpg").write_bytes(file.read())


if __name__ == "__main__":
    main()
