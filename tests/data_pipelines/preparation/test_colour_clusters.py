"""Colour clusters, trained by preparation without being asked."""

import numpy as np
import pytest

from data_pipelines import representations
from data_pipelines.preparation.artifact_training import TrainingError
from data_pipelines.preparation.job import SettingsError
from data_pipelines.prepare import prepare
from data_pipelines.representations.pixel.clusters import CLUSTERS_FILE
from data_pipelines.shards.reader import Shards

OPTIONS = dict(name="pixel", size=4, mode="L", clusters=6)


def run(out, options=OPTIONS, **arguments):
    return prepare(source="digits", representation=options, out=out, workers=1, **arguments)


def test_clusters_are_trained_on_training_images_and_stored(tmp_path):
    first = run(tmp_path / "first", conditional=True, eval_fraction=0.1)
    trained = representations.load(first)
    assert trained.num_labels == 10 and trained.centres.colours.shape == (6, 1)
    shards = Shards(first, "train")
    documents = shards.read(range(50))
    assert all(trained.validate(tokens).valid for tokens in documents)
    assert not shards.codec_bytes.any()
    again = representations.load(run(tmp_path / "again", conditional=True, eval_fraction=0.1))
    assert again == trained

    given = OPTIONS | {"centres": str(first / CLUSTERS_FILE)}
    other = run(tmp_path / "other", given, conditional=True, eval_fraction=0.1)
    for ours, theirs in zip(Shards(other).read(range(50)), documents, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    fewer = run(tmp_path / "fewer", train_tokenizer={"documents": 3})
    assert representations.load(fewer).centres != trained.centres
    with pytest.raises(SettingsError, match="train_tokenizer.documents"):
        run(tmp_path / "fewer", train_tokenizer={"documents": 4})


def test_a_representation_with_its_clusters_can_be_passed(tmp_path):
    made = representations.make(**OPTIONS)
    assert representations.load(run(tmp_path / "out", made)).centres is not None


def test_what_cannot_be_trained_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "text.png").write_bytes(b"no image")
    cases = [
        (OPTIONS, {"vocab_size": 320}, "set train_tokenizer to 0", "digits"),
        (OPTIONS | {"clusters": 250}, {"documents": 2}, "distinct colours", "digits"),
        (OPTIONS, {}, "clusters=0, to see the reasons", f"folder:{tmp_path / 'photos'}"),
        (dict(name="tests.toy:ToyRepresentation"), {"vocab_size": 9}, "no tokenizer", "digits"),
    ]
    for number, (options, train, named, source) in enumerate(cases):
        with pytest.raises(ValueError, match=named) as caught:
            prepare(
                source=source,
                representation=options,
                out=tmp_path / str(number),
                workers=1,
                train_tokenizer=train,
            )
        assert isinstance(caught.value, TrainingError) == source.startswith("folder")
