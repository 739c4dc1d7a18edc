"""Bad images are rejected with a reason, and retried on request."""

import random

import pytest
from PIL import Image

from data_pipelines.preparation import finish, process
from data_pipelines.preparation.read_ahead import read_ahead
from data_pipelines.shards.reader import read_manifest
from data_pipelines.shards.storage import ShardError
from data_pipelines.sources import Item, SourceError
from tests.data_pipelines.preparation.helpers import (
    bad_files,
    hashes,
    jpeg,
    keys,
    make_photos,
    png,
    rejects,
    run,
)


def test_bad_images_are_rejected_with_reasons(mixed, tmp_path):
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
    """Pillow decodes most of them without an error; the others are rejected."""
    folder = tmp_path / "photos"
    folder.mkdir()
    picture, rng = jpeg(0), random.Random(0)
    for number in range(60):
        data = bytearray(picture)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / f"{number:02}.jpg").write_bytes(data)
    out = run(folder, tmp_path / "out")
    assert len(keys(out)) + len(rejects(out)) == 60


def test_an_error_of_a_library_rejects_one_image_only(photos, tmp_path, monkeypatch):
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


def test_an_image_that_was_deleted_after_listing_is_rejected(tmp_path):
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


def test_a_source_with_only_bad_images_is_an_error(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(ShardError, match="all 3 images were rejected"):
        run(folder, tmp_path / "out")


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceError, match="no image"):
        run(tmp_path / "photos", tmp_path / "out")


def test_the_histogram_of_reasons_is_capped_and_complete():
    reasons = [f"kind {chr(97 + n % 26) * 3}: byte {n}" for n in range(1000)]
    counts = finish.histogram(reasons)
    assert len(counts) == 21
    assert sum(counts.values()) == 1000
    assert finish.histogram(["cut at 5", "cut at 77"]) == {"cut at N": 2}


def test_retry_reads_rejected_images_only_and_gives_the_same_shards_as_a_new_run(
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
    assert read == []  # without the flag nothing is retried
    run(mixed, out, copies=1, retry_rejected=True)
    assert set(read) == {f"a/{name}" for name in bad}
    assert set(rejects(out)) == {("a/text.jpg", 0)}
    assert hashes(out) == hashes(run(mixed, tmp_path / "clean", copies=1))


def test_a_retry_when_nothing_failed_changes_nothing(photos, out):
    before = hashes(out)
    run(photos, out, retry_rejected=True)
    assert hashes(out) == before


def test_a_few_images_are_read_ahead_in_order(monkeypatch):
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
            assert 5 not in started  # not needed, not read in advance
            assert read() == bytes([5])  # but it can be read
        else:
            assert read() == bytes([number])
        if number == 100:
            break
    reads.close()
    assert len(started) < 150


def test_of_items_with_equal_keys_the_first_is_kept(photos, tmp_path, monkeypatch):
    source = type(process.open_source(f"folder:{photos}"))
    items = source.items
    monkeypatch.setattr(
        source, "items", lambda self: [*items(self), Item("a/0000.png", "b/0001.png")]
    )
    out = run(photos, tmp_path / "out")
    assert rejects(out) == {("a/0000.png", 0): "the source has another item with this key"}
    assert len(keys(out)) == 200
