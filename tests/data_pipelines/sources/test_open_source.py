"""Specs of sources, and properties that all sources share."""

import pickle

import pytest

from data_pipelines.sources import SourceError, open_source
from tests.data_pipelines.sources.helpers import (
    SAMPLES,
    keys,
    make_parquet,
    make_tar,
    png,
    write,
)


@pytest.mark.parametrize(
    "spec, nearest",
    [
        ("digit", "'digits'"),
        ("foldr:/data", "'folder:/data'"),
        ("tars:a.tar", "'tar:a.tar'"),
        ("parket:x", "'parquet:x'"),
        ("gs://bucket/photos", "'folder:gs://bucket/photos'"),
        ("gs://bucket/x.tar", "'tar:gs://bucket/x.tar'"),
        ("imagenet", "'digits'"),
        ("a/train-000.tar", "'tar:a/train-000.tar'"),
        ("a/0.parquet", "'parquet:a/0.parquet'"),
    ],
)
def test_an_unknown_source_gets_a_suggestion(spec, nearest):
    with pytest.raises(SourceError) as error:
        open_source(spec)
    assert f"did you mean {nearest}?" in str(error.value)
    assert "digits, moving_digits[:CLIPS], folder:PATH, tar:GLOB, tfds:NAME" in str(error.value)


def test_a_path_without_scheme_gets_a_suggestion(tmp_path):
    with pytest.raises(SourceError, match=f"did you mean 'folder:{tmp_path}'"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "spec", ["digits:3", "folder:", "tar:", "tfds:", "parquet:", "tfds:a:b:c", "tfds::train"]
)
def test_a_wrong_argument_is_refused_with_one_sentence(spec):
    with pytest.raises(SourceError) as error:
        open_source(spec)
    assert "\n" not in str(error.value)


def every_source(tmp_path):
    write(tmp_path / "folder/a/1.png")
    yield open_source("digits")
    yield open_source(f"folder:{tmp_path}/folder")
    yield open_source(f"tar:{make_tar(tmp_path / 'a.tar', SAMPLES)}")
    yield open_source(f"parquet:{make_parquet(tmp_path / 'a.parquet', [png()], [0])}")


def test_listings_repeat_and_sources_pickle_as_their_spec(tmp_path):
    for source in every_source(tmp_path):
        again = pickle.loads(pickle.dumps(source))
        listing = list(source.items())
        assert listing == list(source.items()) == list(again.items())
        assert again.spec == source.spec and again.label_names == source.label_names
        assert again.read(listing[0].locator) == source.read(listing[0].locator)
        assert all(-1 <= item.label < len(source.label_names) for item in listing)


def test_a_second_pass_does_not_count_twice(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.txt")
    (tmp_path / "broken.png").symlink_to("nowhere")
    source = open_source(f"folder:{tmp_path}")
    for _ in range(2):
        keys(source)
        assert len(source.rejects) == 1 and source.skipped == {".txt": 1}


def test_kinds_of_skipped_files_are_bounded(tmp_path):
    write(tmp_path / "a.png")
    for number in range(100):
        write(tmp_path / f"x.kind{number}")
    source = open_source(f"folder:{tmp_path}")
    keys(source)
    assert len(source.skipped) == 65 and source.skipped.total() == 100
