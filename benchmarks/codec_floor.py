"""The floor of the codec: how far real images move by going through it, at several qualities.

    python -m benchmarks.codec_floor [--images=150] [--weights=FILE] [--dims=768]

Photos at 256 x 256 and CIFAR-10's test images at 32 x 32, through JPEG at quality 75, 25, 10 and 5
(4:2:0, one MCU a restart), against themselves before it: the same images on both sides. CIFAR-10
there is JPEG at quality 75 already, which its floor does not show. Distances are of the FID
network's features of 768 dimensions, unless --weights reach further. Writes
`benchmarks/results/codec_floor.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from data_pipelines import representations
from evals import metrics
from evals.distances.statistics import Statistics
from evals.features import extractors
from evals.features.features import Extractor, extract
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
    parser.add_argument("--images", type=int, default=150, help="of each set")
    parser.add_argument("--weights", default=str(WEIGHTS))
    parser.add_argument("--dims", type=int, default=768)
    args = parser.parse_args()
    sharding.split_cpu(len(os.sched_getaffinity(0)))
    extractor = extractors.make("inception", weights=args.weights, dims=args.dims)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, copy, size in (("photos", copy_photos, 256), ("cifar10", copy_cifar10, 32)):
            place = Path(folder) / name
            place.mkdir()
            copy(place, args.images)
            results[name] = floors(open_images(str(place)), size, extractor, Path(folder))
            print(name, json.dumps(results[name]), flush=True)
    command = f"python -m benchmarks.codec_floor --images={args.images} --dims={args.dims}"
    result = {
        "command": command,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python "
        f"{platform.python_version()}",
        "settings": dict(extractor.about),
        **results,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def floors(images: Images, size: int, extractor: Extractor, out: Path) -> dict[str, Any]:
    """The metrics of coded images against the same before the codec, by quality."""
    found: dict[str, Any] = {}
    start = time.perf_counter()
    plain = None
    for quality in QUALITIES:
        representation = representations.make("jpeg", size=size, quality=quality)
        if plain is None:  # the same pixels for every quality
            fitted = FittedImages(images, representation, coded=False)
            plain = looked_at(fitted, extractor, out / f"plain{size}")
        through = FittedImages(images, representation, coded=True)
        coded = looked_at(through, extractor, out / f"coded{size}-{quality}")
        values = metrics.compare(coded, plain).values
        kept = ("fid", "fid_standard_error", "kid", "kid_standard_error", "precision", "recall")
        found[f"quality {quality}"] = {name: values[name] for name in kept}
    return {"images": plain.n if plain else 0, "seconds": time.perf_counter() - start, **found}


def looked_at(images: Images, extractor: Extractor, folder: Path) -> Side:
    found = extract(images, extractor, folder)
    return Side(images.name, Statistics.of(found.main), found.about, found)


def copy_photos(place: Path, count: int) -> None:
    """Photos of all classes alike."""
    paths = sorted((SHARED / "data" / "photos" / "clothing").rglob("*.jpg"))
    for number, path in enumerate(paths[:: max(len(paths) // count, 1)][:count]):
        (place / f"{number}.jpg").write_bytes(path.read_bytes())


def copy_cifar10(place: Path, count: int) -> None:
    with tarfile.open(SHARED / "data" / "cifar10" / "cifar10-test.tar.xz") as tar:
        members = [member for member in tar if member.isfile() and member.name.endswith(".jpg")]
        for number, member in enumerate(members[:: max(len(members) // count, 1)][:count]):
            file = tar.extractfile(member)
            assert file is not None
            (place / f"{number}.jpg").write_bytes(file.read())


if __name__ == "__main__":
    main()
