"""Folders of shards as one set of documents: numbering, plans and mismatches."""

import collections

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from data_pipelines.loading.joined_shards import JoinedShards, mixture_schedule
from data_pipelines.loading.loader import Loader
from data_pipelines.packing.mixture import Mixture
from data_pipelines.prepare import prepare

OPTIONS = dict(name="jpeg", size=16, mode="L", quality=50, strip="header")


def make(folder, number, classes=("a", "b"), seed=0, **options):
    """`number` images of each class, some of them equal, prepared into a folder of shards."""
    rng = np.random.default_rng(seed)
    for label in classes:
        (folder / "photos" / label).mkdir(parents=True)
        for n in range(number):
            pixels = np.full((16, 16), 9, np.uint8) if n < 3 else rng.integers(0, 256, (16, 16))
            path = folder / "photos" / label / f"{folder.name}-{n:02}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    options = dict(representation=OPTIONS, conditional=True, num_shards=2) | options
    source = f"folder:{folder / 'photos'}"
    return prepare(source=source, out=folder / "shards", workers=1, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("joined")
    (root / "one").mkdir()
    (root / "two").mkdir()
    return [make(root / "one", 20, eval_fraction=0.2), make(root / "two", 9, seed=1)]


def load(documents, mixture=(), batch_size=5):
    plan = documents.plan(seq_len=512, mode="pack", seed=3, too_long="drop", schedule=mixture)
    return Loader(documents.parts, plan, batch_size=batch_size)


def test_every_key_of_all_folders_comes_once_per_epoch_across_a_batch(folders):
    documents = JoinedShards(folders, "train")
    loader = load(documents, batch_size=3)
    rows_per_epoch = loader.plan.rows_per_epoch
    assert rows_per_epoch % 3  # the epoch ends inside a batch
    keys = collections.Counter(part.key(n) for part in documents.parts for n in range(len(part)))
    assert {key.split("/")[1][:3] for key in keys} == {"one", "two"}
    contents = collections.Counter(
        part.read([n])[0].tobytes() for part in documents.parts for n in range(len(part))
    )
    assert max(contents.values()) > 1  # of equal images, each is read
    with loader.batches() as batches:
        read = [next(batches) for _ in range(-(-2 * rows_per_epoch // 3))]
    rows = {name: np.concatenate([batch[name] for batch in read]) for name in read[0]}
    eos = documents.representation.eos
    for epoch in range(2):
        numbers = np.arange(rows_per_epoch) + epoch * rows_per_epoch
        planned = loader.plan.rows(numbers).pieces[:, 0].tolist()
        assert collections.Counter(map(documents.key, planned)) == keys
        found = collections.Counter()
        for targets, segments in zip(
            rows["targets"][numbers], rows["segments"][numbers], strict=True
        ):
            for segment in range(1, segments.max() + 1):
                *tokens, last = targets[segments == segment]
                assert last == eos
                found[np.array(tokens, np.uint16).tobytes()] += 1
        assert found == contents


def test_rows_come_from_folders_by_weights_that_change_at_a_step(folders):
    documents = JoinedShards(folders, "train")
    loader = load(documents, mixture_schedule(((0, (1, 0)), (4, (1, 4))), 5))
    assert isinstance(loader.plan, Mixture)
    first, later = loader.plan.rows(np.arange(20)), loader.plan.rows(np.arange(20, 120))
    assert {documents.key(n).split("/")[1][:3] for n in first.pieces[:, 0]} == {"one"}
    of_two = [documents.key(int(row[0, 0])).split("/")[1].startswith("two") for row in later]
    assert sum(of_two) == 80
    assert "shares 0.2 : 0.8 from row 20" in str(loader.plan)


def test_folders_without_an_eval_split_are_ignored_in_evaluation(folders):
    evaluation = JoinedShards(folders, "eval")
    assert [part.folder for part in evaluation.parts] == [folders[0]]
    with pytest.raises(ValueError, match="two/shards: .*'eval'"):
        JoinedShards(folders[1:], "eval")


def test_different_label_names_are_refused_with_label_tokens(folders, tmp_path):
    other = make(tmp_path, 3, classes=("a", "c"))
    with pytest.raises(ValueError, match=r"\(b, c\)"):
        JoinedShards([folders[0], other], "train")


def test_another_representation_is_refused(folders, tmp_path):
    other = make(tmp_path, 3, representation=OPTIONS | {"quality": 30})
    with pytest.raises(ValueError, match="'quality': 50.*'quality': 30"):
        JoinedShards([folders[0], other], "train")


def test_damaged_documents_of_all_folders_are_counted_and_reported_once(folders, tmp_path, caplog):
    other = make(tmp_path, 9)
    path = next(other.glob("train-00000*.array_record"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)  # its footer too
    path.write_bytes(data)
    loader = load(documents := JoinedShards([folders[0], other], "train", on_damage="skip"))
    for _ in range(2):
        loader.read_rows(np.arange(loader.plan.rows_per_epoch))
    lost = documents.parts[1].manifest["splits"]["train"]["shards"][0]["documents"]
    assert documents.num_damaged == lost > 0
    assert sum(str(path) in line for line in caplog.messages) == 1


def test_the_representation_is_the_same_for_all_folders(folders):
    documents = JoinedShards(folders, "train")
    assert documents.representation == representations.load(folders[1])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((), []),
        ((3, 1), [(0, (3.0, 1.0))]),
        ([[0, [3, 1]], [10, [1, 0.5]]], [(0, (3.0, 1.0)), (80, (1.0, 0.5))]),  # as JSON has them
    ],
)
def test_mixture_weights_are_constant_or_change_at_steps(weights, expected):
    assert mixture_schedule(weights, 8) == expected


@pytest.mark.parametrize("weights", [("a", "b"), (0, (1, 2)), ((0, 1, 2),), ((0, ("x",)),)])
def test_malformed_mixture_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(1000, \(1, 1\)\)"):
        mixture_schedule(weights, 8)
