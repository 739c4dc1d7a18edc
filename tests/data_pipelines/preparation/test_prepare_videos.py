"""Preparation of videos: keys of clips, rejects, retries and sources."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipelines import describe, representations
from data_pipelines.preparation.job import SettingsError
from data_pipelines.prepare import prepare
from data_pipelines.shards.reader import Shards, read_manifest
from data_pipelines.sources import SourceError, open_source
from data_pipelines.sources.generated.moving_digits import render
from tests.data_pipelines.media.test_videos import bars, video

OPTIONS = dict(name="avc", size=(64, 48), fps=5, frames=4, slice_mbs=0)


def keys(shards):
    return sorted(shards.key(n) for n in range(len(shards)))


@pytest.fixture(scope="module")
def files():
    damaged = video(bars(frames=40), container="mpegts", options={"g": "1", "qp": "8"})
    return {
        "a/long.mp4": video(bars(frames=40)),
        "a/short.mkv": video(bars(frames=3), container="matroska"),
        "b/two.mp4": video(bars(frames=20), audio=True),
        "b/cut.mp4": video(bars(frames=20))[:-700],
        "b/noise.avi": b"no video",
        "b/damaged.ts": damaged[: len(damaged) * 3 // 4],
    }


@pytest.fixture
def folder(files, tmp_path):
    for name, data in files.items():
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "videos" / "b" / "notes.txt").write_text("no video")
    return tmp_path / "videos"


def test_a_folder_of_videos_becomes_clips(folder, tmp_path):
    out = prepare(
        source=f"folder:{folder}", representation=OPTIONS, out=tmp_path / "out", workers=2,
        conditional=True, num_shards=3, drop_duplicates=True,
    )  # fmt: skip
    train = Shards(out, "train")
    found = keys(train)
    assert [key for key in found if "damaged" not in key] == [
        "a/long.mp4#0", "a/long.mp4#1", "a/long.mp4#2", "a/long.mp4#3", "a/long.mp4#4",
        "b/two.mp4#0", "b/two.mp4#1",
    ]  # fmt: skip
    assert {"b/damaged.ts#0", "b/damaged.ts#1"} <= set(found), "clips before the damage"
    for n in range(len(train)):
        (tokens,) = train.read([n])
        assert train.representation.validate(tokens).valid
        assert train.labels[n] == (0 if train.key(n).startswith("a/") else 1)
    assert train.label_names == ("a", "b")
    rejects = (out / read_manifest(out)["rejects"]["file"]).read_text().splitlines()
    reasons = {line["key"]: line["reason"] for line in map(json.loads, rejects)}
    assert "expected at least 4" in reasons.pop("a/short.mkv")
    assert "no supported video format" in reasons.pop("b/noise.avi")
    assert "codec" in reasons.pop("b/cut.mp4")
    assert all(key.startswith("b/damaged.ts#") for key in reasons)
    text = describe.describe(out)
    assert "representation  avc" in text and "gives N frames" in text


def test_a_retry_keeps_existing_clips_and_makes_the_others(folder, tmp_path):
    arguments = dict(source=f"folder:{folder}", representation=OPTIONS, workers=1, num_shards=1)
    out = prepare(out=tmp_path / "out", **arguments)
    before = Shards(out, "train")
    kept = {before.key(n): before.read([n])[0] for n in range(len(before))}
    (folder / "b" / "cut.mp4").write_bytes(video(bars(frames=20)))
    prepare(out=out, **arguments, retry_rejected=True)
    after = Shards(out, "train")
    assert set(keys(after)) == {*kept, "b/cut.mp4#0", "b/cut.mp4#1"}
    for n in range(len(after)):
        if after.key(n) in kept:
            assert np.array_equal(after.read([n])[0], kept[after.key(n)])
    fresh = Shards(prepare(out=tmp_path / "fresh", **arguments), "train")
    assert fresh.data_hash == after.data_hash


def test_tars_and_parquet_give_the_same_clips(folder, files, tmp_path):
    with tarfile.open(tmp_path / "videos.tar", "w") as tar:
        for name in ("a/long.mp4", "b/two.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    rows = [{"bytes": files[name], "path": name} for name in ("a/long.mp4", "b/two.mp4")]
    described = {"info": {"features": {"clip": {"_type": "Video"}, "image": {"_type": "Image"}}}}
    table = pa.table({"image": [b"", b""], "clip": rows}).replace_schema_metadata(
        {"huggingface": json.dumps(described)}
    )
    pyarrow.parquet.write_table(table, tmp_path / "videos.parquet")
    tokens = {}
    for spec in (f"tar:{tmp_path}/videos.tar", f"parquet:{tmp_path}/videos.parquet"):
        out = prepare(source=spec, representation=OPTIONS, out=tmp_path / spec[:3], workers=1,
                      num_shards=1)  # fmt: skip
        shards = Shards(out, "train")
        tokens[spec[:3]] = [shards.read([n])[0] for n in range(len(shards))]
    assert len(tokens["tar"]) == 7
    for ours, theirs in zip(tokens["tar"], tokens["par"], strict=True):
        assert np.array_equal(ours, theirs)


def test_a_tokenizer_is_trained_on_clips(tmp_path):
    out = prepare(
        source="moving_digits:16", representation=dict(OPTIONS, size=(32, 32), fps=4, frames=8),
        out=tmp_path / "out", workers=1, train_tokenizer=dict(vocab_size=300, documents=12),
    )  # fmt: skip
    shards = Shards(out, "train")
    assert shards.representation.vocab_size == 300
    (tokens,) = shards.read([0])
    assert shards.representation.validate(tokens).valid


def test_moving_digits_move_and_depend_on_their_key_only():
    source = open_source("moving_digits:5", "video")
    assert [(item.key, item.locator) for item in source.items()] == [
        (f"moving_digits/{n:06d}", n) for n in range(5)
    ]
    assert source.read(3) == open_source("moving_digits:9", "video").read(3)
    representation = representations.make(**dict(OPTIONS, size=(48, 48), fps=4, frames=8, qp=10))
    for clip in range(5):
        (frames,) = representation.open(source.read(clip))
        shown = representation.decode(representation.encode(frames)).mean(-1)
        assert np.abs(shown - render(clip)).mean() < 6
        weight = render(clip).astype(float) / render(clip).sum((1, 2), keepdims=True)
        centres = np.stack([(weight * axis).sum((1, 2)) for axis in np.mgrid[:48, :48]], -1)
        assert (np.abs(np.diff(centres, axis=0)).sum(-1) > 0.5).all(), (
            "the digit moves in every frame"
        )
        macroblocks = render(clip)[0].reshape(3, 16, 3, 16).any((1, 3))
        assert macroblocks.tolist() == [[False] * 3, [False, True, False], [False] * 3]


def test_sources_and_settings_that_do_not_match_are_refused(tmp_path):
    with pytest.raises(SourceError, match="'moving_digits' holds videos, expected images"):
        open_source("moving_digits")
    with pytest.raises(SourceError, match="'digits' holds images, expected videos"):
        open_source("digits", "video")
    with pytest.raises(SourceError, match="expected a number of clips"):
        open_source("moving_digits:many", "video")
    with pytest.raises(SourceError, match="has no clip 7"):
        open_source("moving_digits:5", "video").read(7)
    with pytest.raises(SettingsError, match="clips have none"):
        prepare(source="moving_digits:5", representation=OPTIONS, out=tmp_path, copies=2)
