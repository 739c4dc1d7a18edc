"""Example: python -m benchmarks.prepare --images=PHOTOS

Measures the overhead of `data_pipelines.prepare` (listing, checks, hashes, shards and tables)
compared with the bare work on the same files in the same run: decode, resize and encode with Pillow
on all cores. Also measures the memory of a listing. Writes benchmarks/results/prepare.json.
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app, flags
from PIL import Image

from benchmarks.cost import Cost, now, overhead, since
from data_pipelines.preparation import listing
from data_pipelines.prepare import prepare
from data_pipelines.sources import Item, Source
from data_pipelines.utils.cpus import num_cpus

RESULTS = pathlib.Path(__file__).parent / "results" / "prepare.json"
OPTIONS = dict(name="jpeg", size=256, mode="RGB", quality=25, subsampling="4:2:0")

_IMAGES = flags.DEFINE_string("images", None, "Folder of JPEG files.", required=True)
_NUMBER = flags.DEFINE_integer("number", 6000, "Files per pass, by repeating the given ones.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Passes of each kind, alternating.")
_LISTED = flags.DEFINE_integer("listed", 2_000_000, "Items of the measured listing.")


def main(_: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        paths = _repeated(pathlib.Path(_IMAGES.value), folder / "photos", _NUMBER.value)
        bare, prepared = [], []
        for number in range(_REPEATS.value):
            bare.append(_time_bare(paths))
            prepared.append(_time_prepare(folder, number))
            print(f"pass {number}: bare {_format(bare[-1])}; prepare {_format(prepared[-1])}")
    result = {
        "images": len(paths),
        "cores": num_cpus(),
        "bare": [cost._asdict() for cost in bare],
        "prepare": [cost._asdict() for cost in prepared],
        "bare_images_per_second": len(paths) / statistics.median(c.seconds for c in bare),
        "prepare_images_per_second": len(paths) / statistics.median(c.seconds for c in prepared),
        "overhead": overhead(bare, prepared, "seconds"),
        # Less affected by other load on the machine.
        "overhead_in_cpu_time": overhead(bare, prepared, "cpu_seconds"),
        "listing": _measure_listing(_LISTED.value),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _format(cost: Cost) -> str:
    return f"{cost.seconds:.1f} s ({cost.cpu_seconds:.1f} s of CPU time)"


def _repeated(images: pathlib.Path, folder: pathlib.Path, number: int) -> list[str]:
    """Copies the files under new names, repeating them to reach `number`."""
    originals = sorted(path for path in images.rglob("*") if path.suffix == ".jpg")
    if not originals:
        raise SystemExit(f"{images} has no .jpg file; --images is a folder of JPEG files")
    folder.mkdir()
    paths = []
    for index in range(number):
        path = folder / f"{index:06}.jpg"
        shutil.copyfile(originals[index % len(originals)], path)
        paths.append(str(path))
    return paths


def _time_bare(paths: list[str]) -> Cost:
    # One part per core from the start, so that no process waits for work.
    parts = [paths[core :: num_cpus()] for core in range(num_cpus())]
    began = now()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_cpus(), context) as pool:
        list(pool.map(_encode, parts))
    return since(began)


def _encode(paths: list[str]) -> int:
    """Decodes, crops, resizes and encodes with the settings of the representation."""
    size = 0
    for path in paths:
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((256, 256), Image.Resampling.BILINEAR)
        file = io.BytesIO()
        image.save(
            file, "JPEG", quality=25, subsampling="4:2:0", restart_marker_blocks=1, streamtype=2
        )
        size += len(file.getvalue())
    return size


def _time_prepare(folder: pathlib.Path, number: int) -> Cost:
    """The whole of `prepare`: starting workers, listing, encoding, writing the manifest."""
    out = folder / f"shards{number}"
    began = now()
    prepare(source=f"folder:{folder / 'photos'}", representation=OPTIONS, out=out)
    cost = since(began)
    shutil.rmtree(out)
    return cost


class _Endless(Source):
    """A source with a given number of items and no files."""

    scheme = "endless"
    label_names = ()

    def _list(self) -> Iterator[Item]:
        for index in range(int(self.argument)):
            key = f"some/folder/of/a/large/collection/image-{index:09}.jpg"
            yield Item(key, key)

    def read(self, locator: Any) -> bytes:
        raise AssertionError(f"read {locator!r}, expected a listing only")


def _measure_listing(items: int) -> dict[str, float]:
    """Seconds and peak memory of a listing in a new process."""
    code = f"from benchmarks.prepare import list_endless; list_endless({items})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    return json.loads(done.stdout)


def list_endless(items: int) -> None:
    """Lists an `_Endless` source and prints seconds and memory as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        listing.write(_Endless(str(items)), folder, copies=0, eval_fraction=0.02, num_shards=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - began
    print(json.dumps({"items": items, "seconds": seconds, "mebibytes": (peak - before) / 1024}))


if __name__ == "__main__":
    app.run(main)
