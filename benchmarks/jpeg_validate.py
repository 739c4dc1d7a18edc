"""Speed of the validation of JPEG documents, compared with decoding and with `is_canonical`.

    python -m benchmarks.jpeg_validate [--photos=FOLDER] [--count=10000]

The documents are files of real photos at 256x256, quality 25, 4:2:0, tables stripped, with a
restart marker after each MCU (as in JPEG-LM) and without restart markers. The "damaged" documents
have one flipped bit in the scan each; about half of them are still valid, with other pixels. The
same documents are also decoded by Pillow, which validates nothing, and validated by the reference
test `is_canonical`, which decodes coefficients and writes them again. All in one process. Writes
`benchmarks/results/jpeg_validate.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from data_pipelines.media.images import open_image
from data_pipelines.representations.jpeg.coefficients import is_canonical
from data_pipelines.representations.jpeg.representation import JpegRepresentation

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
RESULTS = ROOT / "benchmarks" / "results" / "jpeg_validate.json"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
MAX_PHOTOS = 150  # each in eight orientations; further documents are copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="searched with subfolders")
    parser.add_argument("--count", type=int, default=10_000)
    args = parser.parse_args()
    paths = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        parser.error(f"no photo with a suffix in {sorted(SUFFIXES)} under {args.photos}")
    images = read_photos(paths)
    result = {
        "command": f"python -m benchmarks.jpeg_validate --count={args.count}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, numpy {np.__version__}, libjpeg-turbo "
        f"{features.version('libjpeg_turbo')}",
        "restart marker after each MCU": measure(JpegRepresentation(), images, args.count),
        "no restart markers": measure(JpegRepresentation(restart_interval=0), images, args.count),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2)
    RESULTS.write_text(text + "\n")
    print(text)


def read_photos(paths: list[Path]) -> list[Image.Image]:
    """Squares of 256x256 pixels of some photos, each in all eight orientations."""
    fit = JpegRepresentation().fit
    step = max(1, len(paths) // MAX_PHOTOS)
    squares = [fit(open_image(path.read_bytes())) for path in paths[::step]]
    return [
        turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else turned
        for square in squares
        for turned in (square.rotate(angle) for angle in (0, 90, 180, 270))
        for mirrored in (False, True)
    ]


def measure(
    representation: JpegRepresentation, images: list[Image.Image], count: int
) -> dict[str, float]:
    """Times and rates for `count` documents; the names have the units."""
    encode_seconds, distinct = timed(lambda: [representation.encode(image) for image in images])
    documents = [distinct[i % len(distinct)] for i in range(count)]
    damaged = [flip_a_bit(tokens, seed) for seed, tokens in enumerate(documents)]
    first_seconds, first = timed(lambda: representation.validate(documents[0]))
    seconds, results = timed(lambda: representation.validate_batch(documents))
    damaged_seconds, damaged_results = timed(lambda: representation.validate_batch(damaged))
    single_seconds, _ = timed(lambda: [representation.validate(t) for t in distinct[:100]])
    assert first.valid and all(validity.valid for validity in results)

    sample = distinct[:: max(1, len(distinct) // 100)]
    files = [representation.to_bytes(tokens) for tokens in sample]
    decode_seconds, _ = timed(lambda: [open_image(file) for file in files])
    reference_seconds, canonical = timed(
        lambda: [is_canonical(file, representation.format, (256, 256)) for file in files]
    )
    assert all(canonical)
    rate = count / seconds
    return {
        "documents": count,
        "mean_bytes": round(float(np.mean([len(tokens) for tokens in documents])), 1),
        "encode_images_per_second": round(len(images) / encode_seconds, 1),
        "first_validate_seconds_with_tables": round(first_seconds, 3),
        "validate_batch_seconds": round(seconds, 2),
        "validate_batch_documents_per_second": round(rate, 1),
        "validate_batch_megabytes_per_second": round(sum(map(len, documents)) / seconds / 1e6, 1),
        "validate_batch_damaged_seconds": round(damaged_seconds, 2),
        "damaged_found_invalid": sum(not validity.valid for validity in damaged_results),
        "validate_one_milliseconds": round(single_seconds * 10, 2),
        "pillow_decode_documents_per_second": round(len(files) / decode_seconds, 1),
        "reference_documents_per_second": round(len(files) / reference_seconds, 1),
        "times_faster_than_reference": round(rate * reference_seconds / len(files), 1),
    }


def flip_a_bit(tokens: np.ndarray, seed: int) -> np.ndarray:
    """A copy with one flipped bit in the scan."""
    rng = np.random.default_rng(seed)
    damaged = tokens.copy()
    damaged[rng.integers(64, len(tokens) - 2)] ^= 1 << rng.integers(8)
    return damaged


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
