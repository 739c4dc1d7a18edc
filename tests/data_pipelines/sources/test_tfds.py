"""The source `tfds`: prepared TensorFlow datasets of images and videos."""

import io
import shutil
import sys

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources import SourceError, open_source
from data_pipelines.sources.tfds import frames_to_nut
from tests.data_pipelines.sources.helpers import (
    assert_reads_in_a_fresh_process,
    keys,
    png,
    reasons,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Small datasets in ArrayRecord, as TFDS writes them."""
    tfds = pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")
    features = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.ClassLabel(names=["ant", "duck", "cat"]),
        "coarse": tfds.features.ClassLabel(num_classes=2),
        "note": tfds.features.Text(),
    }

    def examples(count):
        return [
            {"image": io.BytesIO(png(n)), "label": n % 3, "coarse": 0, "note": "x"}
            for n in range(count)
        ]

    write_tfds(root, "toy", features, {"train": examples(70), "test": examples(2)})
    write_tfds(root, "words", {"note": tfds.features.Text()}, {"train": [{"note": "x"}]})
    return root


def write_tfds(root, name, features, splits):
    import tensorflow_datasets as tfds

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, 30, file_format="array_record")
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()


@pytest.fixture
def tfds_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    return prepared


def test_tfds_gives_the_stored_bytes_and_labels(tfds_dir):
    source = open_source("tfds:toy")
    items = list(source.items())
    assert source.label_names == ("ant", "duck", "cat")
    assert items[69] == ("toy/1.0.0/train/00000069", 69, 0) and len(items) == 70
    assert [item.label for item in items] == [n % 3 for n in range(70)]
    assert [source.read(item.locator) for item in items] == [png(n) for n in range(70)]
    assert "tensorflow" not in sys.modules
    assert_reads_in_a_fresh_process(open_source("tfds:toy:test"))


@pytest.mark.parametrize(
    "spec, count",
    [
        ("tfds:toy:test", 2),
        ("tfds:toy:train[10:15]", 5),
        ("tfds:toy:1.0.0:train+test", 72),
    ],
)
def test_tfds_splits_are_its_own(tfds_dir, spec, count):
    assert len(keys(open_source(spec))) == count


def test_tfds_unprepared_reports_the_command_and_downloads_nothing(tfds_dir):
    with pytest.raises(SourceError) as error:
        open_source("tfds:mnist")
    assert "tfds build mnist --file_format=array_record" in str(error.value)
    assert str(tfds_dir) in str(error.value) and not (tfds_dir / "mnist").exists()
    with pytest.raises(SourceError, match="tfds build toy/large"):
        open_source("tfds:toy/large:test")


def test_tfds_unknown_split_lists_the_splits(tfds_dir):
    with pytest.raises(SourceError, match="splits: train, test"):
        open_source("tfds:toy:validation")


def test_tfds_without_an_image_lists_its_features(tfds_dir):
    with pytest.raises(SourceError, match="no image among its features: note"):
        open_source("tfds:words")


def test_tfds_without_random_access_reports_the_conversion(tfds_dir, tmp_path, monkeypatch):
    shutil.copytree(tfds_dir / "toy", tmp_path / "toy")
    about = tmp_path / "toy/1.0.0/dataset_info.json"
    about.write_text(about.read_text().replace("array_record", "tfrecord"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(SourceError, match="stored as tfrecord.*tfds convert_format"):
        open_source("tfds:toy")


def test_tfds_with_a_damaged_file_rejects_the_records(tfds_dir, tmp_path, monkeypatch):
    shutil.copytree(tfds_dir / "toy", tmp_path / "toy")
    shard = min((tmp_path / "toy/1.0.0").glob("toy-train*"))
    data = bytearray(shard.read_bytes())
    data[500] ^= 0xFF
    shard.write_bytes(data)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = open_source("tfds:toy")
    listed = keys(source)
    assert 40 <= len(listed) < 70 and len(listed) + len(source.rejects) == 70
    assert all("record cannot be read" in reason for reason in reasons(source).values())
    bad = int(source.rejects[0].key.rsplit("/", 1)[1])
    with pytest.raises(SourceError, match=f"record {bad} of tfds:toy cannot be read"):
        source.read(bad)


@pytest.mark.parametrize("locator", [-1, 70, "0", None])
def test_tfds_refuses_a_wrong_locator(tfds_dir, locator):
    with pytest.raises(SourceError, match="0 to 69"):
        open_source("tfds:toy").read(locator)


def test_tfds_gives_videos_of_the_stored_frames(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow", reason="TFDS makes its feature Video with TensorFlow only")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    frames = (
        np.zeros((6, 16, 24, 3), np.uint8) + 40 * np.arange(6, dtype=np.uint8)[:, None, None, None]
    )
    features = {
        "video": tfds.features.Video(shape=(None, 16, 24, 3)),
        "label": tfds.features.ClassLabel(names=["run", "walk"]),
    }
    write_tfds(tmp_path, "clips", features, {"train": [{"video": frames, "label": 1}]})
    source = open_source("tfds:clips", "video")
    (item,) = source.items()
    assert (item.label, source.label_names) == (1, ("run", "walk"))
    with av.open(io.BytesIO(source.read(item.locator))) as container:
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(found, frames)
    with pytest.raises(SourceError, match="has no image among its features"):
        open_source("tfds:clips")


@pytest.mark.parametrize("encoding", ["PNG", "JPEG"])
def test_frames_are_muxed_into_a_video_without_decoding(encoding):
    frames = []
    for shade in range(0, 240, 40):
        file = io.BytesIO()
        Image.new("RGB", (24, 16), (shade, 90, 255 - shade)).save(file, encoding)
        frames.append(file.getvalue())
    with av.open(io.BytesIO(frames_to_nut(frames))) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        assert container.streams.video[0].average_rate == 25
    assert packets == frames
    with pytest.raises(SourceError, match="cannot be muxed"):
        frames_to_nut([b"no image"])
