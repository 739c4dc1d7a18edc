"""`describe` prints the statistics of a folder, verifies it and exports documents."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import describe
from data_pipelines.prepare import prepare
from data_pipelines.shards.reader import Shards

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 images and a broken one in two classes, one image twice, some in the eval split."""
    root = tmp_path_factory.mktemp("described")
    rng = np.random.default_rng(0)
    for number in range(30):
        path = root / "photos" / ("cat" if number % 3 else "dog") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(path)
    (root / "photos" / "cat" / "twin.png").write_bytes(path.read_bytes())
    (root / "photos" / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("1.HEIC", "2.heic", "download", ".hidden"):
        (root / "photos" / "dog" / name).write_bytes(b"x")
    return prepare(
        source=f"folder:{root / 'photos'}",
        representation=dict(name="jpeg", size=16, mode="L", quality=50, strip="header"),
        out=root / "shards",
        eval_fraction=0.3,
        drop_duplicates=True,
        workers=1,
    )


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "data_pipelines.describe", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_counts_labels_and_rejects_are_printed(folder):
    text = describe.describe(folder)
    train, eval_split = Shards(folder), Shards(folder, "eval")
    assert len(train) + len(eval_split) == 30
    assert f"train: {len(train)} documents of {len(train)} images" in text
    assert f"{train.lengths.sum():,} tokens" in text
    assert "rejected        1 (rejects.jsonl)" in text
    assert "duplicates      1 dropped (duplicates.jsonl)" in text
    for label, name in enumerate(("cat", "dog")):
        count = (train.labels == label).sum()
        assert any(line.split() == [str(label), name, str(count)] for line in text.splitlines())


def test_the_histogram_of_lengths_counts_every_document(folder):
    text = describe.describe(folder).split("train:")[1]
    counts = [int(line.split()[3]) for line in text.splitlines() if line.split()[1:2] == ["-"]]
    assert sum(counts) == len(Shards(folder))


def test_fill_is_computed_for_the_given_seq_len(folder):
    positions = Shards(folder).lengths + 1
    seq_len = int(positions.max())
    expected = f"seq_len {seq_len:,}: {len(positions)} documents in"
    assert expected in describe.describe(folder, seq_len=seq_len)


def test_a_sheet_shows_documents(folder, tmp_path):
    done = call(f"--shards={folder}", f"--sheet={tmp_path / 'sheet.png'}")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB"
        assert len(sheet.getcolors(1 << 20)) > 100  # noise, not one colour


def test_a_document_is_written_as_a_file(folder, tmp_path):
    documents = Shards(folder)
    out = tmp_path / "one.jpg"
    done = call(f"--shards={folder}", f"--document={documents.key(2)}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == documents.representation.to_bytes(documents.read([2])[0])
    with Image.open(out) as image:
        assert (image.format, image.size) == ("JPEG", (16, 16))


def test_an_unknown_key_ends_the_command_with_one_sentence(folder, tmp_path):
    done = call(f"--shards={folder}", "--document=cat/none.png", f"--out={tmp_path / 'x.jpg'}")
    assert done.returncode == 1
    assert "'cat/none.png'" in done.stderr and "Traceback" not in done.stderr


def test_verify_finds_a_changed_byte_in_any_file(folder):
    assert all(not wrong for _, wrong in describe.verify(folder))
    for name in [name for name, _ in describe.verify(folder) if "index" not in name]:
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert [found for found, wrong in describe.verify(folder) if wrong] == [name]
        path.write_bytes(whole)


def test_verify_sets_the_exit_status(folder):
    assert call(f"--shards={folder}", "--verify").returncode == 0
    path = folder / Shards(folder).manifest["splits"]["train"]["shards"][0]["name"]
    table = path.with_suffix(".npz")
    whole = table.read_bytes()
    table.write_bytes(whole[:-1])
    try:
        done = call(f"--shards={folder}", "--verify")
    finally:
        table.write_bytes(whole)
    assert done.returncode == 1
    assert table.name in done.stdout and "run prepare again" in done.stderr


def test_a_folder_without_shards_ends_the_command_with_one_sentence(tmp_path):
    done = call(f"--shards={tmp_path}")
    assert done.returncode == 1
    assert "manifest.json does not exist" in done.stderr and "Traceback" not in done.stderr


def test_help_shows_an_example_first():
    assert call("--help").stdout.strip().startswith("Example: python -m data_pipelines.describe")


def test_skipped_entries_are_printed_by_kind(folder):
    assert "4 (2 .heic, 1 hidden, 1 without a suffix)" in describe.describe(folder)


def test_warnings_of_preparation_are_printed(tmp_path):
    for name in ("train", "val"):
        path = tmp_path / "photos" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("L", (16, 16)).save(path)
    options = dict(name="jpeg", size=16, mode="L", quality=50, strip="header")
    out = prepare(source=f"folder:{tmp_path}/photos", representation=options, out=tmp_path / "out")
    assert "'train', 'val', which look like splits" in describe.describe(out)
