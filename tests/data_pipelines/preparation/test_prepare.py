"""Shards depend on settings and source alone: not on workers, order, retries or kills."""

import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from data_pipelines import representations
from data_pipelines.preparation import duplicates, finish, job, launchers, listing, process
from data_pipelines.preparation.job import SettingsError
from data_pipelines.preparation.process import ShardSpec, process_shard
from data_pipelines.preparation.read_ahead import read_ahead
from data_pipelines.prepare import prepare
from data_pipelines.representations.base import Representation
from data_pipelines.shards import files as shard_files
from data_pipelines.shards.files import ShardError
from data_pipelines.shards.reader import Shards, read_manifest
from data_pipelines.sources import Item, SourceError
from data_pipelines.sources.table import Table
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """200 images in two labelled folders; not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    return make_photos(folder, 200)


def make_photos(folder, number):
    for index in range(number):
        path = folder / ("ab"[index % 2]) / f"{index:04}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(index))
    return folder


def run(photos, out, **options):
    defaults = dict(representation=OPTIONS, num_shards=4, workers=1)
    return prepare(source=f"folder:{photos}", out=out, **{**defaults, **options})


def hashes(folder):
    """Of every file that preparation leaves, by name; hidden ones are what a kill left."""
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


# What decides the shards, and what does not.


def test_shards_do_not_depend_on_the_number_of_workers(photos, tmp_path):
    options = dict(eval_fraction=0.2, copies=2, drop_duplicates=True, conditional=True)
    one = run(photos, tmp_path / "one", workers=1, **options)
    three = run(photos, tmp_path / "three", workers=3, **options)
    assert hashes(one) == hashes(three)


def test_shards_do_not_depend_on_the_order_in_which_they_are_made(photos, tmp_path):
    whole = run(photos, tmp_path / "whole", eval_fraction=0.2)
    for task in (0, 2, 1):
        run(photos, tmp_path / "tasks", eval_fraction=0.2, task=task, num_tasks=3)
        assert (tmp_path / "tasks" / "manifest.json").exists() == (task == 1)
    assert hashes(tmp_path / "tasks") == hashes(whole)


def test_which_shard_an_image_is_in_does_not_depend_on_the_others(photos, tmp_path):
    def shard_of(folder):
        documents = Shards(folder)
        return {documents.key(n): documents.locate(n)[0] for n in range(len(documents))}

    (tmp_path / "some").mkdir()
    make_photos(tmp_path / "some", 50)
    some = shard_of(run(tmp_path / "some", tmp_path / "few", num_shards=5))
    assert len(some) == 50
    assert some.items() <= shard_of(run(photos, tmp_path / "all", num_shards=5)).items()


@pytest.mark.parametrize("packed", ["tar.gz", "parquet"])
def test_what_must_be_read_as_a_whole_is_read_once(photos, tmp_path, monkeypatch, packed):
    paths = sorted(photos.rglob("*.png"))
    if packed == "parquet":
        table = pyarrow.table({"image": [path.read_bytes() for path in paths]})
        pyarrow.parquet.write_table(table, tmp_path / "photos.parquet", row_group_size=10)
        starts = (Table, "_start")
    else:
        for start in range(0, 200, 10):
            with tarfile.open(tmp_path / f"{start:03}.tar.gz", "w:gz") as tar:
                for path in paths[start : start + 10][::-1]:  # in no order of their names
                    tar.add(path, path.name)
        starts = (gzip.GzipFile, "__init__")
    begun = []
    original = getattr(*starts)
    source = f"{packed.removesuffix('.gz')}:{tmp_path}/*.{packed}"
    out = tmp_path / "out"
    prepare(source=source, representation=OPTIONS, out=out, num_shards=7, task=0, num_tasks=99)
    monkeypatch.setattr(*starts, lambda *args, **kw: begun.append(args) or original(*args, **kw))
    prepare(source=source, representation=OPTIONS, out=out, num_shards=7, workers=1)
    assert 15 <= len(begun) <= 20  # of 20 units; task 0 made those of the first shard
    assert len(keys(out)) == 200


def test_a_listing_larger_than_its_buffer_is_the_same(photos, tmp_path, monkeypatch):
    whole = run(photos, tmp_path / "whole")
    monkeypatch.setattr(listing, "_BUFFER", 100)
    assert hashes(run(photos, tmp_path / "dribbled")) == hashes(whole)


def test_every_image_becomes_one_document(photos, tmp_path):
    out = run(photos, tmp_path / "out", eval_fraction=0.3)
    expected = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert sorted(keys(out) + keys(out, "eval")) == expected
    assert rejects(out) == {}


def test_the_manifest_counts_what_is_there(photos, tmp_path):
    out = run(photos, tmp_path / "out", eval_fraction=0.3, copies=1)
    manifest = read_manifest(out)
    assert manifest["items"]["train"] + manifest["items"]["eval"] == 200
    for split, part in manifest["splits"].items():
        documents = Shards(out, split)
        assert part["documents"] == len(documents)
        assert part["tokens"] == documents.lengths.sum()
        assert part["images"] == len(set(keys(out, split))) == manifest["items"][split]
    assert manifest["label_names"] == ["a", "b"]
    assert manifest["representation"]["fingerprint"] == representations.load(out).fingerprint


def test_the_same_images_are_held_out_whatever_else_changes(photos, tmp_path):
    first = run(photos, tmp_path / "first", eval_fraction=0.2)
    other = {**OPTIONS, "quality": 90}
    second = run(photos, tmp_path / "second", eval_fraction=0.2, num_shards=9, representation=other)
    larger = run(photos, tmp_path / "larger", eval_fraction=0.4)
    assert sorted(keys(first, "eval")) == sorted(keys(second, "eval"))
    assert set(keys(first, "eval")) < set(keys(larger, "eval"))
    assert 20 <= len(keys(first, "eval")) <= 60


def test_copies_are_documents_of_training_images_only(photos, tmp_path):
    plain = run(photos, tmp_path / "plain", eval_fraction=0.2)
    out = run(photos, tmp_path / "out", eval_fraction=0.2, copies=3)
    documents, originals = Shards(out), Shards(plain)
    assert len(documents) == 4 * len(originals)
    assert keys(out, "eval") == keys(plain, "eval")
    for number in range(0, 40):
        key, copy = documents.key(number), documents.copy(number)
        assert copy == number % 4
        original = originals.read([originals.find(key)])[0]
        same = np.array_equal(documents.read([number])[0], original)
        assert same == (copy == 0)
        assert documents.labels[number] == originals.labels[originals.find(key)]


def test_a_conditional_model_gets_a_token_for_every_label(photos, tmp_path):
    out = run(photos, tmp_path / "out", conditional=True)
    assert representations.load(out).num_labels == 2


def test_a_conditional_model_without_labels_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(png(0))
    with pytest.raises(SettingsError, match="needs labels.*has none"):
        run(tmp_path / "photos", tmp_path / "out", conditional=True)


# Going on, and refusing to mix.


def test_a_complete_folder_is_returned_at_once(photos, tmp_path, monkeypatch):
    out = run(photos, tmp_path / "out", copies=1)
    before = hashes(out)
    monkeypatch.setattr(job, "open_source", lambda spec: pytest.fail("the source was opened"))
    monkeypatch.setattr(launchers, "process_shard", lambda *_: pytest.fail("a shard was made"))
    assert run(photos, out, copies=1) == out
    assert run(photos, out, copies=1, augment=dict(rotation=10.0)) == out  # that is the default
    assert hashes(out) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(eval_fraction=0.5), r"eval_fraction \(0.0 in the folder, 0.5 asked for\)"),
        (dict(representation={**OPTIONS, "quality": 75}), r"quality \(50.*75"),
        (dict(copies=2), r"copies \(0.*2"),
        (dict(num_shards=7), r"num_shards \(4.*7"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_naming_both(photos, tmp_path, change, named):
    out = run(photos, tmp_path / "out")
    before = hashes(out)
    with pytest.raises(SettingsError, match=named):
        run(photos, out, **change)
    assert hashes(out) == before


def test_settings_out_of_range_are_refused_before_anything_is_written(photos, tmp_path):
    wrong = [
        dict(eval_fraction=1.0),
        dict(copies=-1),
        dict(num_shards=-1),
        dict(copies=1, augment=dict(rotate=3)),
        dict(task=3, num_tasks=3, setup_timeout=0),
    ]
    for options in wrong:
        with pytest.raises((SettingsError, ValueError)):
            run(photos, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_made_again(photos, tmp_path):
    out = run(photos, tmp_path / "out")
    before = hashes(out)
    (tmp_path / "out" / "train-00002-of-00004.array_record").unlink()
    run(photos, out)
    assert hashes(out) == before


def test_a_missing_manifest_is_joined_again_without_encoding(photos, tmp_path, monkeypatch):
    out = run(photos, tmp_path / "out")
    before = hashes(out)
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "train.index.npz").unlink()
    monkeypatch.setattr(process, "_documents", lambda *_: pytest.fail("a shard was made"))
    run(photos, out)
    assert hashes(out) == before


def test_a_spec_of_an_older_set_up_is_refused(photos, tmp_path):
    out = run(photos, tmp_path / "out")
    with pytest.raises(ShardError, match="set up anew"):
        process_shard(ShardSpec(str(out), "0" * 64, "train", 0, 4))


def test_another_version_of_the_encoder_is_refused_naming_both(photos, tmp_path, monkeypatch):
    run(photos, tmp_path / "out", task=0, num_tasks=2)
    other = {"pillow": "1.0", "libjpeg": "6b"}
    monkeypatch.setattr(Representation, "encoder_versions", property(lambda _: other))
    process._open_job.cache_clear()
    with pytest.raises(ShardError, match=r"set up with .*here is .*1\.0"):
        run(photos, tmp_path / "out", task=1, num_tasks=2)


def test_a_damaged_listing_is_refused(photos, tmp_path):
    run(photos, tmp_path / "out", task=0, num_tasks=2)
    (tmp_path / "out" / "listing" / "train-00001-of-00004.jsonl").write_text("")
    with pytest.raises(ShardError, match="train-00001-of-00004.jsonl.*damaged"):
        run(photos, tmp_path / "out", task=1, num_tasks=2)


# Bad images.


def bad_files():
    """name -> bytes of a file that must be set aside."""
    whole, picture = png(1000, 64), jpeg(1001)
    return {
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": picture[: len(picture) // 2],
        "empty.png": b"",
        "flipped.png": whole[:500] + bytes([whole[500] ^ 0xFF]) + whole[501:],
        "no_header.jpg": bytes(100) + picture[100:],
        "text.jpg": b"this is no image\n" * 20,
    }


@pytest.fixture
def mixed(tmp_path):
    """20 good images and some that are not."""
    folder = make_photos(tmp_path / "mixed", 20) if not (tmp_path / "mixed").mkdir() else None
    for name, data in bad_files().items():
        (folder / "a" / name).write_bytes(data)
    (folder / "a" / "jpeg_inside.png").write_bytes(jpeg(5))  # a wrong extension only
    return folder


def test_bad_images_are_set_aside_each_with_its_reason(mixed, tmp_path):
    out = run(mixed, tmp_path / "out")
    found = rejects(out)
    assert set(found) == {(f"a/{name}", 0) for name in bad_files()}
    assert all(found.values())
    assert len(keys(out)) == 21
    assert "a/jpeg_inside.png" in keys(out)
    manifest = read_manifest(out)
    assert manifest["rejects"]["count"] == len(bad_files())
    assert sum(manifest["rejects"]["reasons"].values()) == len(bad_files())


def test_a_flipped_scan_bit_never_stops_the_run(tmp_path):
    """Pillow decodes most of them without a word; what it notices is set aside."""
    folder = tmp_path / "photos"
    folder.mkdir()
    picture, rng = jpeg(0), random.Random(0)
    for number in range(60):
        data = bytearray(picture)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / f"{number:02}.jpg").write_bytes(data)
    out = run(folder, tmp_path / "out")
    assert len(keys(out)) + len(rejects(out)) == 60


def test_what_one_image_does_to_a_library_costs_that_image_only(photos, tmp_path, monkeypatch):
    normalise = process.images.normalise

    def fail(image, mode):
        pixel = image.getpixel((0, 0))
        if pixel == Image.open(photos / "a" / "0000.png").getpixel((0, 0)):
            raise MemoryError("out of it")
        return normalise(image, mode)

    monkeypatch.setattr(process.images, "normalise", fail)
    out = run(photos, tmp_path / "out")
    assert rejects(out) == {("a/0000.png", 0): "MemoryError: out of it"}
    assert len(keys(out)) == 199


def test_an_image_that_vanished_since_the_listing_is_set_aside(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    make_photos(folder, 20)
    run(folder, tmp_path / "out", task=0, num_tasks=5)
    for path in folder.rglob("*.png"):
        path.unlink()
    (folder / "a" / "0000.png").write_bytes(png(0))
    for task in range(1, 5):
        run(folder, tmp_path / "out", task=task, num_tasks=5)
    found = rejects(tmp_path / "out")
    assert found and len(found) + len(keys(tmp_path / "out")) == 20


def test_a_source_of_nothing_but_bad_images_is_an_error_that_says_so(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(ShardError, match="not one of 3 images became a document"):
        run(folder, tmp_path / "out")


def test_a_folder_without_images_stops_with_one_sentence(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceError, match="no image"):
        run(tmp_path / "photos", tmp_path / "out")


def test_the_histogram_of_reasons_is_capped_and_complete():
    reasons = [f"kind {chr(97 + n % 26) * 3}: byte {n}" for n in range(1000)]
    counts = finish.histogram(reasons)
    assert len(counts) == 21
    assert sum(counts.values()) == 1000
    assert finish.histogram(["cut at 5", "cut at 77"]) == {"cut at N": 2}


def test_retry_takes_only_what_failed_and_gives_the_shards_of_a_clean_run(
    mixed, tmp_path, monkeypatch
):
    out = run(mixed, tmp_path / "out", copies=1)
    bad = bad_files()
    for name in bad:
        (mixed / "a" / name).write_bytes(png(len(name)) if name != "text.jpg" else b"?")
    read = []
    source = type(process.open_source(f"folder:{mixed}"))
    original = source.read
    monkeypatch.setattr(
        source, "read", lambda self, locator: read.append(locator) or original(self, locator)
    )
    run(mixed, out, copies=1)
    assert read == []  # without the flag nothing is taken again
    run(mixed, out, copies=1, retry_rejected=True)
    assert set(read) == {f"a/{name}" for name in bad}
    assert set(rejects(out)) == {("a/text.jpg", 0)}
    assert hashes(out) == hashes(run(mixed, tmp_path / "clean", copies=1))


def test_a_retry_when_nothing_failed_changes_nothing(photos, tmp_path):
    out = run(photos, tmp_path / "out")
    before = hashes(out)
    run(photos, out, retry_rejected=True)
    assert hashes(out) == before


def test_images_are_read_ahead_in_order_and_no_more_than_a_few(monkeypatch):
    started = []

    class Source:
        spec = "gs://bucket"

        def unit(self, item):
            return item.key

        def read(self, locator):
            started.append(locator)
            if locator == 3:
                raise SourceError("gone")
            return bytes([locator])

    items = [Item(str(number), number) for number in range(200)]
    reads = read_ahead(Source(), items, lambda item: item.locator != 5)
    for number, (item, read) in enumerate(reads):
        assert item.locator == number
        assert len(started) <= number + 34
        if number == 3:
            with pytest.raises(SourceError, match="gone"):
                read()
        elif number == 5:
            assert 5 not in started  # not wanted, not read ...
            assert read() == bytes([5])  # ... but to be had
        else:
            assert read() == bytes([number])
        if number == 100:
            break
    reads.close()
    assert len(started) < 150


def test_a_key_that_occurs_twice_is_a_document_once(photos, tmp_path, monkeypatch):
    source = type(process.open_source(f"folder:{photos}"))
    items = source.items
    monkeypatch.setattr(
        source, "items", lambda self: [*items(self), Item("a/0000.png", "b/0001.png")]
    )
    out = run(photos, tmp_path / "out")
    assert rejects(out) == {("a/0000.png", 0): "the source has another image of this key"}
    assert len(keys(out)) == 200


# Duplicates.


@pytest.fixture
def twins(tmp_path):
    """40 images, of which c/* and d/* repeat some."""
    folder = tmp_path / "twins"
    folder.mkdir()
    make_photos(folder, 40)
    for name in ("c", "d"):
        (folder / name).mkdir()
        for number in range(0, 40, 4):
            (folder / name / f"{number}.png").write_bytes(png(number))
    return folder


def test_of_equal_files_the_smallest_key_is_kept_across_splits(twins, tmp_path):
    out = run(twins, tmp_path / "out", eval_fraction=0.4, drop_duplicates=True, copies=1)
    kept = keys(out)[::2] + keys(out, "eval")
    assert sorted(kept) == sorted(key for key in kept if key[0] in "ab")
    assert len(kept) == 40
    lines = read_json_lines((tmp_path / "out" / finish.DUPLICATES).read_bytes())
    assert len(lines) == 20
    for line in lines:
        assert (twins / line["key"]).read_bytes() == (twins / line["kept"]).read_bytes()
        assert line["kept"] < line["key"]
    train = Shards(out)
    for number, tokens in enumerate(train.read(range(len(train)))):
        assert len(tokens) == train.lengths[number]
        assert train.find(train.key(number), train.copy(number)) == number
    with pytest.raises(KeyError, match="duplicate"):
        Shards(out, lines[0]["shard"].split("-")[0]).find(lines[0]["key"])


def test_what_is_dropped_does_not_depend_on_the_number_of_shards(twins, tmp_path):
    dropped = [
        sorted(keys(run(twins, tmp_path / str(n), num_shards=n, drop_duplicates=True)))
        for n in (1, 7)
    ]
    assert dropped[0] == dropped[1]
    assert len(dropped[0]) == 40


def test_duplicates_are_the_same_found_in_small_slices(twins, tmp_path):
    out = run(twins, tmp_path / "out")
    names = [name for _, name in job.read_job(out).names()]
    whole = duplicates.find(out, names, 60)
    sliced = duplicates.find(out, names, 60, images_at_once=7)
    assert len(whole.lines) == 20
    assert whole.lines == sliced.lines
    assert {n: rows.tolist() for n, rows in whole.images.items()} == {
        n: rows.tolist() for n, rows in sliced.images.items()
    }


def test_without_the_option_duplicates_stay(twins, tmp_path):
    assert len(keys(run(twins, tmp_path / "out"))) == 60


# Tokenizer.


def test_a_tokenizer_is_trained_on_training_images_and_stored(photos, tmp_path):
    train = dict(vocab_size=300, documents=50)
    first = run(
        photos, tmp_path / "first", train_tokenizer=train, eval_fraction=0.2, conditional=True
    )
    second = run(
        photos, tmp_path / "second", train_tokenizer=train, eval_fraction=0.2, conditional=True
    )
    assert hashes(first) == hashes(second)
    trained = representations.load(first)
    assert trained.num_labels == 2
    plain = run(photos, tmp_path / "plain", eval_fraction=0.2)
    documents, originals = Shards(first), Shards(plain)
    assert documents.lengths.sum() < originals.lengths.sum()
    for number in range(10):
        tokens = documents.read([number])[0]
        original = originals.read([originals.find(documents.key(number))])[0]
        assert trained.to_bytes(tokens) == representations.load(plain).to_bytes(original)


def test_training_a_tokenizer_needs_options_not_a_finished_value(photos, tmp_path):
    with pytest.raises(SettingsError, match="dict"):
        run(
            photos,
            tmp_path / "out",
            representation=representations.make(**OPTIONS),
            train_tokenizer=dict(vocab_size=300, documents=10),
        )


def test_a_finished_representation_can_be_given(photos, tmp_path):
    value = representations.make(**OPTIONS)
    out = run(photos, tmp_path / "out", representation=value)
    assert isinstance(value, Representation)
    assert hashes(out) == hashes(run(photos, tmp_path / "options"))


# Launchers.


def command(photos, out, *arguments):
    config = ROOT / "configs" / "jpeg.py"
    return [
        *(sys.executable, "-m", "data_pipelines.prepare", f"--config={config}:digits"),
        *(f"--source=folder:{photos}", f"--out={out}", "--copies=0", *arguments),
    ]


def test_the_command_line_prepares_and_tells_what_it_made(photos, tmp_path):
    done = subprocess.run(
        command(photos, tmp_path / "out", "--workers=2", "--num_shards=4"),
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=120),
    )
    assert done.returncode == 0, done.stderr
    assert "is complete" in done.stdout and "0 rejected" in done.stdout
    assert "image/s" in done.stderr
    assert representations.load(tmp_path / "out").num_labels == 2


def test_help_shows_an_example_first():
    done = subprocess.run(
        [sys.executable, "-m", "data_pipelines.prepare", "--help"],
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=60),
    )
    assert done.stdout.strip().startswith("Example: python -m data_pipelines.prepare")


def test_an_error_on_the_command_line_is_one_sentence(tmp_path):
    done = subprocess.run(
        command(tmp_path / "nowhere", tmp_path / "out"),
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=60),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("SourceError: ")


def test_a_setting_that_the_config_does_not_have_is_one_sentence(photos, tmp_path):
    done = subprocess.run(
        command(photos, tmp_path / "out", "--config.data.heldot=0.1"),
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=60),
    )
    assert done.returncode and "heldot" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("task", "num_tasks"), [(3, 3), (-1, 2), (0, 0)])
def test_a_task_that_there_is_not_is_refused_before_any_wait(photos, tmp_path, task, num_tasks):
    with pytest.raises(ValueError, match=f"task is {task} of {num_tasks}"):
        run(photos, tmp_path / "out", task=task, num_tasks=num_tasks)
    assert not (tmp_path / "out").exists()


def test_workers_do_not_import_jax():
    code = "import sys, data_pipelines.preparation.worker; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_tasks_wait_for_the_set_up_and_say_what_they_waited_for(photos, tmp_path):
    with pytest.raises(SettingsError, match="did not appear within.*start task 0"):
        run(photos, tmp_path / "out", task=1, num_tasks=2, setup_timeout=0.1)


def test_array_tasks_started_together_complete_the_folder(photos, tmp_path):
    whole = run(photos, tmp_path / "whole", eval_fraction=0.2)
    code = (
        "import sys; from data_pipelines.prepare import prepare;"
        f"prepare(source='folder:{photos}', representation={OPTIONS}, num_shards=4, eval_fraction=0.2,"
        f"out={str(tmp_path / 'tasks')!r}, workers=1, task=int(sys.argv[1]), num_tasks=3)"
    )
    tasks = [subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=ROOT) for n in (2, 1, 0)]
    assert [task.wait(timeout=60) for task in tasks] == [0, 0, 0]
    assert hashes(tmp_path / "tasks") == hashes(whole)


def test_a_worker_that_dies_is_named_and_the_next_run_completes(photos, tmp_path, monkeypatch):
    whole = run(photos, tmp_path / "whole", workers=2)
    start = launchers._start_worker

    def start_and_kill():
        worker = start()
        worker.kill()
        return worker

    monkeypatch.setattr(launchers, "_start_worker", start_and_kill)
    with pytest.raises(ShardError, match=r"train-0000\d-of-00004 died \(signal 9\)"):
        run(photos, tmp_path / "out", workers=2)
    monkeypatch.undo()
    run(photos, tmp_path / "out", workers=2)
    assert hashes(tmp_path / "out") == hashes(whole)


def test_an_error_in_a_worker_reaches_the_caller(photos, tmp_path):
    run(photos, tmp_path / "out", task=0, num_tasks=4)
    (tmp_path / "out" / "listing" / "train-00003-of-00004.jsonl").write_text("")
    with pytest.raises(ShardError, match="train-00003-of-00004.jsonl"):
        run(photos, tmp_path / "out", workers=2)


def test_a_full_disk_stops_with_what_to_do_and_the_next_run_completes(
    photos, tmp_path, monkeypatch
):
    whole = run(photos, tmp_path / "whole")
    writer = shard_files.array_record_module.ArrayRecordWriter
    opened = []

    class FullDisk:
        """The third shard meets a full disk, in the way of the real writer: at close."""

        def __init__(self, path, options):
            opened.append(path)
            self._writer = writer(path, options)
            self.ok, self.write = self._writer.ok, self._writer.write

        def close(self):
            self._writer.close()
            if len(opened) == 3:
                raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(shard_files.array_record_module, "ArrayRecordWriter", FullDisk)
    with pytest.raises(WriteError, match="No space left.*MiB are free.*same command again"):
        run(photos, tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out").glob(".*"))
    run(photos, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(whole)


def test_beam_makes_the_same_shards(photos, tmp_path):
    pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")
    whole = run(photos, tmp_path / "whole", eval_fraction=0.2)
    beam = run(photos, tmp_path / "beam", eval_fraction=0.2, launcher="beam")
    assert hashes(beam) == hashes(whole)


def test_a_remote_folder_gets_the_same_files_by_copy(photos, tmp_path, monkeypatch):
    options = dict(eval_fraction=0.2, drop_duplicates=True)
    whole = run(photos, tmp_path / "whole", **options)
    monkeypatch.setattr(shard_files, "is_remote", lambda path: "bucket" in str(path))
    replaced = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: replaced.append(paths) or replace(*paths))
    remote = run(photos, tmp_path / "bucket", **options)
    assert hashes(remote) == hashes(whole)
    assert replaced == []  # an object store cannot rename
    assert not list(remote.glob(".*"))


def test_an_unknown_launcher_is_refused(photos, tmp_path):
    with pytest.raises(SettingsError, match="'pool' or 'beam'"):
        run(photos, tmp_path / "out", launcher="ray")


# Kills.


def kill_and_restart(photos, tmp_path, kills):
    """SIGKILLs the whole process group at random moments, then lets one run finish."""
    code = (
        "from data_pipelines.prepare import prepare;"
        f"prepare(source='folder:{photos}', representation={OPTIONS}, num_shards=8, copies=10,"
        f"eval_fraction=0.1, out={str(tmp_path / 'killed')!r}, workers=2)"
    )
    options = dict(num_shards=8, copies=10, eval_fraction=0.1, workers=2)
    began = time.monotonic()
    start = [sys.executable, "-c", code]
    subprocess.run(start, cwd=ROOT, check=True, stderr=subprocess.DEVNULL, timeout=120)
    took = time.monotonic() - began
    whole = hashes(tmp_path / "killed")
    rng = random.Random(kills)
    # All of a run is tried: listing, the first shard, the last, the manifest.
    for _ in range(kills):
        folder = tmp_path / "killed"
        if rng.random() < 0.5:
            subprocess.run(["rm", "-r", str(folder)], check=True)
        process = subprocess.Popen(
            start, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(0.2 * took, took))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if folder.exists() and rng.random() < 0.5:
            run(photos, folder, **options)
            assert hashes(folder) == whole
    run(photos, tmp_path / "killed", **options)
    assert hashes(tmp_path / "killed") == whole
    assert json.loads((tmp_path / "killed" / "manifest.json").read_text())


def test_killed_and_started_again_gives_the_same_shards(photos, tmp_path):
    kill_and_restart(photos, tmp_path, 3)


@pytest.mark.slow
def test_killed_twenty_times_and_started_again_gives_the_same_shards(photos, tmp_path):
    kill_and_restart(photos, tmp_path, 20)
