"""Shards return the documents that were written, and damage is detected."""

import io
import json
import pickle
import resource
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from data_pipelines.prepare import prepare
from data_pipelines.shards import reader, storage
from data_pipelines.shards.reader import DamagedShard, MismatchError, Shards
from data_pipelines.shards.storage import Document, Reject, ShardError, TableReader

OPTIONS = dict(name="jpeg", size=16, mode="L", quality=50, strip="header")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """60 images in two labelled folders, three shards."""
    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    for label in ("left", "right"):
        (root / "photos" / label).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(pixels).save(root / "photos" / label / f"{number:02}.png")
    prepare(
        source=f"folder:{root / 'photos'}",
        representation=OPTIONS,
        out=root / "shards",
        num_shards=3,
        workers=1,
    )
    return root


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy of the prepared shards to damage."""
    return shutil.copytree(prepared / "shards", tmp_path / "shards")


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x20
    path.write_bytes(data)


def test_documents_are_the_encoded_images_in_any_order(prepared):
    documents = Shards(prepared / "shards")
    order = np.random.default_rng(1).permutation(len(documents))
    for document, tokens in zip(order, documents.read(order), strict=True):
        image = Image.open(prepared / "photos" / documents.key(int(document)))
        np.testing.assert_array_equal(tokens, documents.representation.encode(image))
        assert tokens.dtype == np.uint16
        assert len(tokens) == documents.lengths[document]


def test_labels_are_those_of_the_source(prepared):
    documents = Shards(prepared / "shards")
    assert documents.label_names == ("left", "right")
    for document in range(len(documents)):
        name = documents.label_names[documents.labels[document]]
        assert documents.key(document).startswith(name + "/")
    assert len(documents) == 60


def test_a_document_asked_for_twice_comes_twice(prepared):
    tokens = Shards(prepared / "shards").read([7, 7])
    np.testing.assert_array_equal(tokens[0], tokens[1])


def test_a_document_out_of_range_is_an_error(prepared):
    documents = Shards(prepared / "shards")
    for number in (-1, len(documents)):
        with pytest.raises(IndexError, match=str(number)):
            documents.read([number])


def test_a_document_is_found_by_its_key(prepared):
    documents = Shards(prepared / "shards")
    for document in range(0, len(documents), 7):
        assert documents.find(documents.key(document)) == document
    with pytest.raises(KeyError, match="nowhere"):
        documents.find("nowhere")


def test_opening_and_reading_touches_no_key(prepared, monkeypatch):
    monkeypatch.setattr(TableReader, "keys", lambda self: pytest.fail("keys were read"))
    documents = Shards(prepared / "shards")
    documents.read(range(len(documents)))


def test_threads_share_one_reader(prepared, monkeypatch):
    monkeypatch.setattr(reader, "_OPEN_FILES", 1)  # so that they also close each other's files
    documents = Shards(prepared / "shards")
    expected = documents.read(range(60))
    start = threading.Barrier(4)

    def read(seed):
        start.wait()
        for _ in range(20):
            order = np.random.default_rng(seed).permutation(60)
            for document, tokens in zip(order, documents.read(order), strict=True):
                np.testing.assert_array_equal(tokens, expected[document])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))


def test_shards_travel_to_other_processes(prepared):
    documents = Shards(prepared / "shards")
    documents.read([0])
    copy = pickle.loads(pickle.dumps(documents))
    np.testing.assert_array_equal(copy.read([5])[0], documents.read([5])[0])


def test_a_damaged_record_is_named_and_stops_the_reader(folder):
    documents = Shards(folder)
    path = folder / "train-00000-of-00003.array_record"
    flip(path, 1000)
    with pytest.raises(DamagedShard, match=rf"{path}: record \d+ is damaged") as caught:
        documents.read(range(60))
    assert caught.value.record >= 0


def test_a_damaged_record_can_be_skipped_and_is_counted(folder):
    expected = Shards(folder).read(range(60))
    flip(folder / "train-00000-of-00003.array_record", 1000)
    documents = Shards(folder, on_damage="skip")
    found = documents.read(range(60))
    empty = [document for document in range(60) if not len(found[document])]
    assert empty and sorted(documents.damaged) == empty
    assert len(empty) < 5  # one flipped bit costs the records of one block, not the file
    for document in set(range(60)) - set(empty):
        np.testing.assert_array_equal(found[document], expected[document])


def test_a_flipped_bit_never_gives_a_wrong_token(folder):
    expected = Shards(folder).read(range(60))
    path = folder / "train-00000-of-00003.array_record"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    rejected = 0
    for bit in rng.integers(0, len(whole) * 8, 300):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        documents = Shards(folder, on_damage="skip")
        for document, tokens in enumerate(documents.read(range(60))):
            if document in documents.damaged:
                assert not len(tokens)
            else:
                np.testing.assert_array_equal(tokens, expected[document])
        rejected += bool(documents.damaged)
    assert rejected > 10  # most of so small a file is unused room


@pytest.mark.parametrize("damage", ["footer", "cut", "empty", "missing", "text"])
def test_a_damaged_file_is_named_and_costs_its_own_documents_only(folder, damage):
    path = folder / "train-00001-of-00003.array_record"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        half = len(data) // 2
        broken = {
            "footer": data[:half] + bytes(len(data) - half),
            "cut": data[: len(data) - 100],
            "empty": b"",
            "text": b"not a shard " * 10_000,
        }
        path.write_bytes(broken[damage])
    with pytest.raises(DamagedShard, match=str(path)):
        Shards(folder).read(range(60))
    documents = Shards(folder, on_damage="skip")
    found = documents.read(range(60))
    in_file = [document for document in range(60) if documents.locate(document)[0] == 1]
    assert sorted(documents.damaged) == in_file
    assert all(len(found[document]) for document in set(range(60)) - set(in_file))


def test_a_shard_of_another_preparation_is_not_taken_for_ours(folder):
    other = folder / "train-00002-of-00003.array_record"
    (folder / "train-00001-of-00003.array_record").write_bytes(other.read_bytes())
    with pytest.raises(DamagedShard):
        Shards(folder).read(range(60))


def test_verify_names_every_file_that_changed(folder):
    assert not [name for name, wrong in Shards(folder).verify() if wrong]
    flip(folder / "train-00000-of-00003.array_record", -1)
    (folder / "train-00002-of-00003.npz").unlink()
    wrong = dict(pair for pair in Shards(folder).verify() if pair[1])
    assert set(wrong) == {"train-00000-of-00003.array_record", "train-00002-of-00003.npz"}
    assert "SHA-256" in wrong["train-00000-of-00003.array_record"]


def test_a_damaged_index_is_refused(folder):
    flip(folder / "train.index.npz", 200)
    with pytest.raises(ShardError, match="train.index.npz.*run prepare again"):
        Shards(folder)


def test_a_damaged_manifest_is_refused(folder):
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-50])
    with pytest.raises(ShardError, match="manifest.json.*damaged"):
        Shards(folder)
    manifest.write_text(json.dumps({"format": "token-shards/99"}))
    with pytest.raises(ShardError, match="token-shards/99"):
        Shards(folder)


def test_an_unfinished_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_pipelines.prepare"):
        Shards(tmp_path)


def test_an_unknown_split_is_refused_with_the_available_ones(prepared):
    with pytest.raises(ValueError, match="'eval'.*has: train"):
        Shards(prepared / "shards", "eval")


def test_a_table_that_holds_pickles_is_refused(folder):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    buffer = io.BytesIO()
    np.savez(buffer, images=np.array([Bomb()], object))
    (folder / "train-00000-of-00003.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ShardError, match="train-00000-of-00003.npz"):
        Shards(folder).key(0)


def test_shards_of_another_representation_are_refused(prepared):
    documents = Shards(prepared / "shards")
    documents.require(representations.make(**OPTIONS))
    other = representations.make(**{**OPTIONS, "quality": 75})
    with pytest.raises(MismatchError, match="quality.*50.*75") as caught:
        documents.require(other)
    assert documents.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)


def document(key, copy=0, length=5):
    tokens = np.arange(length, dtype=np.uint16)
    return Document(tokens, key, copy, 3, bytes(range(16)))


def test_a_shard_is_the_same_bytes_every_time(tmp_path):
    sidecars = [
        storage.write_shard(
            tmp_path / name, "train-00000-of-00001", [document("a"), document("a", 1)], [], {}
        )
        for name in ("one", "two")
        if not (tmp_path / name).mkdir()
    ]
    assert sidecars[0] == sidecars[1]


@pytest.mark.parametrize("key", ["plain", "naïve", "写真/猫", "صورة", "a\u2028b", 'q"\\n', "\x85"])
def test_keys_in_any_script_come_back(tmp_path, key):
    rejects = [Reject(key, 0, f"cannot read {key}")]
    storage.write_shard(tmp_path, "s", [document(key)], rejects, {})
    assert TableReader(storage.table_path(tmp_path, "s")).load().keys == (key,)
    assert storage.read_rejects(tmp_path, "s") == rejects


def test_copies_share_their_images_row(tmp_path):
    documents = [document("a"), document("a", 1, 9), document("b", 0, 2)]
    storage.write_shard(tmp_path, "s", documents, [], {})
    table = TableReader(storage.table_path(tmp_path, "s")).load()
    assert table.lengths.tolist() == [5, 9, 2]
    assert table.images.tolist() == [0, 0, 1]
    assert table.copies.tolist() == [0, 1, 0]
    assert table.keys == ("a", "b")
    assert table.content.shape == (2, 16)


def test_a_shard_without_documents_can_be_written_and_read(tmp_path):
    sidecar = storage.write_shard(tmp_path, "s", [], [], {})
    assert sidecar["documents"] == 0
    assert storage.read_sidecar(tmp_path, "s") == sidecar


def test_a_shard_that_lost_bytes_does_not_count_as_finished(tmp_path):
    storage.write_shard(tmp_path, "s", [document("a")], [], {})
    path = storage.record_path(tmp_path, "s")
    path.write_bytes(path.read_bytes()[:-1])
    assert storage.read_sidecar(tmp_path, "s") is None


def test_an_error_of_the_producer_leaves_no_finished_shard(tmp_path):
    def documents():
        yield document("a")
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError, match="went away"):
        storage.write_shard(tmp_path, "s", documents(), [], {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_and_leaves_no_finished_shard(tmp_path):
    """A limit on the size of files makes the operating system refuse the write, as a full disk."""
    code = """
import sys, numpy as np
from data_pipelines.shards import storage
from data_pipelines.utils.files import WriteError
tokens = np.zeros(50_000, np.uint16)
documents = (storage.Document(tokens, str(n), 0, -1, bytes(16)) for n in range(100_000))
try:
    storage.write_shard(sys.argv[1], "s", documents, [], {})
except WriteError as error:
    print(error)
    print(next(documents).key)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    message, read = done.stdout.splitlines()
    assert "cannot be written" in message and "run the same command again" in message
    assert int(read) < 2000  # it stopped soon, not after all 10 GB
    assert list(tmp_path.iterdir()) == []
