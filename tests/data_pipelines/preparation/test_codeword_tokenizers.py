"""A tokenizer over code words, trained by preparation."""

import pytest

from data_pipelines import representations
from data_pipelines.prepare import prepare
from data_pipelines.shards.reader import Shards
from tests.data_pipelines.representations.jpeg.mutations import synthetic

OPTIONS = dict(name="jpeg", size=24, mode="L", quality=50, restart_interval=1)
TRAINED = dict(vocab_size=720, documents=40, kind="codewords")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(50):
        (folder / str(index % 2)).mkdir(exist_ok=True)
        synthetic(40, 30, index).save(folder / str(index % 2) / f"{index}.png")
    return folder


def test_shards_hold_the_same_files_in_fewer_tokens(photos, tmp_path):
    def documents(name, options, **arguments):
        folder = prepare(
            source=f"folder:{photos}",
            representation=OPTIONS | options,
            out=tmp_path / name,
            workers=1,
            conditional=True,
            **arguments,
        )
        representation = representations.load(folder)
        shards = Shards(folder)
        numbers = sorted(range(len(shards)), key=shards.key)
        return representation, [shards.read([number])[0] for number in numbers]

    as_bytes, first = documents("bytes", {})
    plain, second = documents("words", dict(tokenizer="codewords"))
    trained, third = documents("trained", {}, train_tokenizer=TRAINED)
    again, _ = documents("again", dict(tokenizer="codewords"), train_tokenizer=TRAINED)
    assert again == trained and again.fingerprint == trained.fingerprint
    assert (trained.vocab_size, trained.num_labels) == (722, 2)
    assert trained.to_config()["tokenizer"]["kind"] == "codewords"
    assert len(first) == len(second) == len(third) == 50
    for theirs, mine, fewer in zip(first, second, third, strict=True):
        file = as_bytes.to_bytes(theirs)
        assert plain.to_bytes(mine) == file
        assert trained.to_bytes(fewer) == file
        assert trained.validate(fewer).valid
        assert len(fewer) < len(mine)


def test_kinds_that_are_not_there_are_refused(photos, tmp_path):
    for name, kind, representation in [
        ("unknown", "words", OPTIONS),
        ("small", "codewords", OPTIONS),
    ]:
        with pytest.raises(ValueError, match="words|expected 621"):
            prepare(
                source=f"folder:{photos}",
                representation=representation,
                out=tmp_path / name,
                workers=1,
                train_tokenizer=dict(vocab_size=300, documents=10, kind=kind),
            )
