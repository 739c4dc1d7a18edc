"""Builders of small sources, and readers of what a source lists."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image


def png(grey: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, format="PNG")
    return file.getvalue()


def write(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)
    return path


def keys(source) -> list[str]:
    return [item.key for item in source.items()]


def reasons(source) -> dict[str, str]:
    return {reject.key: reject.reason for reject in source.rejects}


class PatchedOs:
    """The module `os` with some functions replaced, for one tested module."""

    def __init__(self, **functions) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name):
        return getattr(os, name)


def assert_reads_in_a_fresh_process(source) -> None:
    """Reads every item in a new process, from the spec and locators that went through JSON."""
    expected = {item.key: source.read(item.locator).hex() for item in source.items()}
    listing = json.dumps([item.locator for item in source.items()])
    code = (
        "import json, sys\n"
        "from data_pipelines.sources import open_source\n"
        "source = open_source(sys.argv[1])\n"
        "print(json.dumps([source.read(l).hex() for l in reversed(json.load(sys.stdin))]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, source.spec],
        input=listing,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert json.loads(result.stdout)[::-1] == list(expected.values())


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        mode = "w:gz"
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


SAMPLES = {
    "train/0001.jpg": png(1),
    "train/0001.cls": b"2",
    "train/0001.txt": b"a duck",
    "train/0002.cls": b"0\n",
    "train/0002.left.png": png(2),
    "train/0002.right.png": png(3),
    "./0003.png": png(4),
    "0003.json": b'{"label": 1, "caption": "b"}',
    "0004.png": png(5),
    "0005.json": b'{"label": 1}',
}


def make_parquet(path, images, labels=None, *, names=None, group=4, columns=("image", "label")):
    """Writes a file as Hugging Face's `datasets` does; `names` makes the label a ClassLabel."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cells = [
        image if image is None or isinstance(image, dict) else {"bytes": image, "path": "x.png"}
        for image in images
    ]
    arrays = {columns[0]: pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    features = {columns[0]: {"_type": "Image"}}
    if labels is not None:
        arrays[columns[1]] = pa.array(labels)
        features[columns[1]] = {"_type": "ClassLabel", "names": names} if names else {}
    content = pa.table(arrays)
    about = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        content.replace_schema_metadata({"huggingface": about}), path, row_group_size=group
    )
    return path
