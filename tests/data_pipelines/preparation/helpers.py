"""Small sources to prepare, and readers of what preparation wrote."""

import hashlib
import io
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.preparation import finish
from data_pipelines.prepare import prepare
from data_pipelines.shards.reader import Shards
from data_pipelines.utils.files import read_json_lines

ROOT = pathlib.Path(__file__).parents[3]


OPTIONS = dict(name="jpeg", size=16, mode="L", quality=50, strip="header")


def png(seed, size=24):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def jpeg(seed):
    file = io.BytesIO()
    Image.open(io.BytesIO(png(seed, 64))).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_photos(folder, number):
    """Writes `number` labelled images, `a/0000.png`, `b/0001.png`, ...; returns the folder."""
    for index in range(number):
        path = folder / ("ab"[index % 2]) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index))
    return folder


def run(photos, out, **options):
    defaults = dict(representation=OPTIONS, num_shards=4, workers=1)
    return prepare(source=f"folder:{photos}", out=out, **{**defaults, **options})


def hashes(folder):
    """SHA-256 of every file that preparation wrote, by name, without hidden temporary files."""
    files = [path for path in pathlib.Path(folder).rglob("[!.]*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def keys(folder, split="train"):
    documents = Shards(folder, split)
    return [documents.key(number) for number in range(len(documents))]


def rejects(folder):
    lines = read_json_lines((pathlib.Path(folder) / finish.REJECTS).read_bytes())
    return {(line["key"], line["copy"]): line["reason"] for line in lines}


def bad_files():
    """Name -> content of files that must be rejected."""
    whole, picture = png(1000, 64), jpeg(1001)
    return {
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": picture[: len(picture) // 2],
        "empty.png": b"",
        "flipped.png": whole[:500] + bytes([whole[500] ^ 0xFF]) + whole[501:],
        "no_header.jpg": bytes(100) + picture[100:],
        "text.jpg": b"this is no image\n" * 20,
    }
