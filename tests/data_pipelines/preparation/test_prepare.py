"""Shards depend on the settings and the source only, not on workers, order or retries."""

import gzip
import tarfile

import numpy as np
import pyarrow.parquet
import pytest

from data_pipelines import representations
from data_pipelines.preparation import listing
from data_pipelines.preparation.job import SettingsError
from data_pipelines.prepare import prepare
from data_pipelines.representations.base import Representation
from data_pipelines.shards.reader import Shards, read_manifest
from tests.data_pipelines.preparation.helpers import (
    OPTIONS,
    hashes,
    keys,
    make_photos,
    png,
    rejects,
    run,
)


def test_shards_do_not_depend_on_the_number_of_workers(photos, tmp_path):
    options = dict(eval_fraction=0.2, copies=2, drop_duplicates=True, conditional=True)
    one = run(photos, tmp_path / "one", workers=1, **options)
    three = run(photos, tmp_path / "three", workers=3, **options)
    assert hashes(one) == hashes(three)


def test_shards_do_not_depend_on_the_order_in_which_they_are_made(
    photos, prepared_with_eval, tmp_path
):
    for task in (0, 2, 1):
        run(photos, tmp_path / "tasks", eval_fraction=0.2, task=task, num_tasks=3)
        assert (tmp_path / "tasks" / "manifest.json").exists() == (task == 1)
    assert hashes(tmp_path / "tasks") == hashes(prepared_with_eval)


def test_the_shard_of_an_image_does_not_depend_on_other_images(photos, tmp_path):
    def shard_of(folder):
        documents = Shards(folder)
        return {documents.key(n): documents.locate(n)[0] for n in range(len(documents))}

    (tmp_path / "some").mkdir()
    make_photos(tmp_path / "some", 50)
    some = shard_of(run(tmp_path / "some", tmp_path / "few", num_shards=5))
    assert len(some) == 50
    assert some.items() <= shard_of(run(photos, tmp_path / "all", num_shards=5)).items()


@pytest.mark.parametrize("packed", ["tar.gz", "parquet"])
def test_sequential_archives_are_read_once(photos, tmp_path, monkeypatch, packed):
    paths = sorted(photos.rglob("*.png"))
    if packed == "parquet":
        table = pyarrow.table({"image": [path.read_bytes() for path in paths]})
        pyarrow.parquet.write_table(table, tmp_path / "photos.parquet", row_group_size=10)
        starts = (pyarrow.parquet.ParquetFile, "iter_batches")
    else:
        for start in range(0, 200, 10):
            with tarfile.open(tmp_path / f"{start:03}.tar.gz", "w:gz") as tar:
                for path in paths[start : start + 10][::-1]:  # in no order of their names
                    tar.add(path, path.name)
        starts = (gzip.GzipFile, "__init__")
    starts_seen = []
    original = getattr(*starts)
    source = f"{packed.removesuffix('.gz')}:{tmp_path}/*.{packed}"
    out = tmp_path / "out"
    prepare(source=source, representation=OPTIONS, out=out, num_shards=7, task=0, num_tasks=99)
    monkeypatch.setattr(
        *starts, lambda *args, **kw: starts_seen.append(args) or original(*args, **kw)
    )
    prepare(source=source, representation=OPTIONS, out=out, num_shards=7, workers=1)
    assert 15 <= len(starts_seen) <= 20  # of 20 units; task 0 made those of the first shard
    assert len(keys(out)) == 200


def test_a_listing_larger_than_its_buffer_is_the_same(photos, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "BUFFER_BYTES", 100)
    assert hashes(run(photos, tmp_path / "flushed")) == hashes(prepared)


def test_every_image_becomes_one_document(photos, tmp_path):
    out = run(photos, tmp_path / "out", eval_fraction=0.3)
    expected = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert sorted(keys(out) + keys(out, "eval")) == expected
    assert rejects(out) == {}


def test_the_manifest_counts_documents_images_and_tokens(photos, tmp_path):
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


def test_the_eval_split_depends_on_keys_and_fraction_only(photos, prepared_with_eval, tmp_path):
    first = prepared_with_eval
    other = {**OPTIONS, "quality": 90}
    second = run(photos, tmp_path / "second", eval_fraction=0.2, num_shards=9, representation=other)
    larger = run(photos, tmp_path / "larger", eval_fraction=0.4)
    assert sorted(keys(first, "eval")) == sorted(keys(second, "eval"))
    assert set(keys(first, "eval")) < set(keys(larger, "eval"))
    assert 20 <= len(keys(first, "eval")) <= 60


def test_copies_are_documents_of_training_images_only(photos, prepared_with_eval, tmp_path):
    plain = prepared_with_eval
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


def test_conditional_without_labels_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(png(0))
    with pytest.raises(SettingsError, match="photos has no labels"):
        run(tmp_path / "photos", tmp_path / "out", conditional=True)


def test_a_tokenizer_is_trained_on_training_images_and_stored(photos, prepared_with_eval, tmp_path):
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
    plain = prepared_with_eval
    documents, originals = Shards(first), Shards(plain)
    assert documents.lengths.sum() < originals.lengths.sum()
    for number in range(10):
        tokens = documents.read([number])[0]
        original = originals.read([originals.find(documents.key(number))])[0]
        assert trained.to_bytes(tokens) == representations.load(plain).to_bytes(original)


def test_labels_need_options_of_the_representation(photos, tmp_path):
    with pytest.raises(SettingsError, match="dict"):
        run(
            photos,
            tmp_path / "out",
            representation=representations.make(**OPTIONS),
            conditional=True,
        )


def test_a_representation_can_be_passed(photos, prepared, tmp_path):
    value = representations.make(**OPTIONS)
    out = run(photos, tmp_path / "out", representation=value)
    assert isinstance(value, Representation)
    assert hashes(out) == hashes(prepared)
