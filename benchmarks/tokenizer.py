"""Times of training BPE on JPEG documents, and of encoding and decoding them.

    python -m benchmarks.tokenizer [--photos=FOLDER] [--count=10000]

The documents are the files of random square crops of real photos at 256x256, quality 25, 4:2:0, a
restart marker after each MCU, tables stripped (as in JPEG-LM). The same run also measures Pillow's
encoding of the same crops, the min cost of preparation, and the byte tokenizer. Decoding and
resizing the photos is not timed. Writes `benchmarks/results/tokenizer.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from PIL import Image

from data_pipelines.representations.tokenizer import BpeTokenizer, ByteTokenizer, train_bpe

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
RESULTS = ROOT / "benchmarks" / "results" / "tokenizer.json"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="searched with subfolders")
    parser.add_argument("--count", type=int, default=10_000)
    args = parser.parse_args()
    photos = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not photos:
        parser.error(f"no photo with a suffix in {sorted(SUFFIXES)} under {args.photos}")
    result = {
        "command": f"python -m benchmarks.tokenizer --count={args.count}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, sentencepiece {sentencepiece.__version__}",
        **measure(photos, args.count),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2)
    RESULTS.write_text(text + "\n")
    print(text)


def measure(photos: list[Path], count: int) -> dict[str, float]:
    """Times of one run each; the names have the units."""
    documents, jpeg_seconds = make_documents(photos, count)
    train_seconds, model = timed(lambda: train_bpe(documents))
    bpe = BpeTokenizer(model)
    one_thread, tokens = timed(lambda: bpe.encode_batch(documents, num_threads=1))
    all_threads, _ = timed(lambda: bpe.encode_batch(documents))
    decode_seconds, decoded = timed(lambda: [bpe.decode(ids) for ids in tokens])
    bytes_seconds, _ = timed(lambda: ByteTokenizer().encode_batch(documents))
    if decoded != documents:
        raise AssertionError("decoding the tokens did not return the documents")
    num_bytes = sum(map(len, documents))
    return {
        "documents": count,
        "bytes_per_document": num_bytes / count,
        "tokens_per_byte": sum(map(len, tokens)) / num_bytes,
        "train_seconds": train_seconds,
        "encode_seconds_1_thread": one_thread,
        "encode_seconds_all_threads": all_threads,
        "decode_seconds": decode_seconds,
        "encode_bytes_tokenizer_seconds": bytes_seconds,
        "pillow_jpeg_encode_seconds": jpeg_seconds,
        "encode_1_thread_over_pillow": one_thread / jpeg_seconds,
    }


def make_documents(photos: list[Path], count: int) -> tuple[list[bytes], float]:
    """(files of `count` crops, evenly from all photos; seconds of Pillow's encoding)."""
    rng = np.random.default_rng(0)
    documents: list[bytes] = []
    seconds = 0.0
    for index, path in enumerate(photos):
        with Image.open(path) as file:
            photo = file.convert("RGB")
        copies = count * (index + 1) // len(photos) - count * index // len(photos)
        for _ in range(copies):
            crop = random_square(photo, rng)
            start = time.perf_counter()
            documents.append(to_document(crop))
            seconds += time.perf_counter() - start
    return documents, seconds


def random_square(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(min(photo.size) * rng.uniform(0.5, 1.0))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
    box = (left, top, left + side, top + side)
    return photo.resize((256, 256), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def to_document(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=25, subsampling="4:2:0", streamtype=2, restart_marker_blocks=1)
    return file.getvalue()


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
