"""Resuming a folder of shards, and refusing to mix settings in it."""

import pytest

from data_pipelines.preparation import job, launchers, process
from data_pipelines.preparation.job import SettingsError
from data_pipelines.preparation.process import ShardSpec, process_shard
from data_pipelines.representations.jpeg.representation import JpegRepresentation
from data_pipelines.shards import storage
from data_pipelines.shards.storage import ShardError
from tests.data_pipelines.preparation.helpers import OPTIONS, hashes, run


def test_a_complete_folder_is_returned_immediately(photos, tmp_path, monkeypatch):
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
        (dict(eval_fraction=0.5), "eval_fraction is 0.0 .*0.5"),
        (dict(representation={**OPTIONS, "quality": 75}), "quality is 50 .*75"),
        (dict(copies=2), "copies is 0 .*2"),
        (dict(num_shards=7), "num_shards is 4 .*7"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(photos, out, change, named):
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
        with pytest.raises(ValueError):
            run(photos, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_made_again(photos, out):
    before = hashes(out)
    (out / "train-00002-of-00004.array_record").unlink()
    run(photos, out)
    assert hashes(out) == before


def test_a_missing_manifest_is_written_again_without_encoding(photos, out, monkeypatch):
    before = hashes(out)
    (out / "manifest.json").unlink()
    (out / "train.index.npz").unlink()
    monkeypatch.setattr(storage, "write_shard", lambda *_: pytest.fail("a shard was made"))
    run(photos, out)
    assert hashes(out) == before


def test_a_spec_of_an_earlier_set_up_is_refused(out):
    with pytest.raises(ShardError, match="set up again"):
        process_shard(ShardSpec(str(out), "0" * 64, "train", 0, 4))


def test_another_version_of_the_encoder_is_refused(photos, tmp_path, monkeypatch):
    run(photos, tmp_path / "out", task=0, num_tasks=2)
    other = {"pillow": "1.0", "libjpeg": "6b"}
    monkeypatch.setattr(JpegRepresentation, "encoder_versions", property(lambda _: other))
    process.open_job.cache_clear()
    with pytest.raises(ShardError, match=r"found .*1\.0"):
        run(photos, tmp_path / "out", task=1, num_tasks=2)


def test_a_damaged_listing_is_refused(photos, tmp_path):
    run(photos, tmp_path / "out", task=0, num_tasks=2)
    (tmp_path / "out" / "listing" / "train-00001-of-00004.jsonl").write_text("")
    with pytest.raises(ShardError, match="train-00001-of-00004.jsonl.*damaged"):
        run(photos, tmp_path / "out", task=1, num_tasks=2)
