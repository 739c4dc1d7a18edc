"""A run is followed checkpoint by checkpoint to its end, and again after an interruption."""

import json
import shutil

import pytest

from evals import follow
from evals.features import extractors
from evals.reporting.results import Run
from jpeglm_jax.train import train
from jpeglm_jax.training.checkpoint import CheckpointError
from tests.jpeglm_jax.conftest import tiny


@pytest.fixture(scope="module")
def workdir(digit_shards, tmp_path_factory):
    """A run of four steps whose last checkpoint is not there yet, but in `later`."""
    folder = tmp_path_factory.mktemp("run")
    changes = {"data.shards": digit_shards, "checkpoint.every": 2, "checkpoint.keep": 5}
    train(tiny(4, **changes), folder)
    (folder / "later").mkdir()
    shutil.move(folder / "checkpoints" / "4", folder / "later" / "4")
    return folder


def run(workdir, **options):
    extractor = extractors.make("digits")
    options = {"num": 12, "num_held_out": 8, **options}
    return follow.follow(workdir, "digits", extractor=extractor, **options)


def test_new_checkpoints_are_scored_until_the_last_step(workdir):
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:  # the run goes on meanwhile
            shutil.move(workdir / "later" / "4", workdir / "checkpoints" / "4")

    found = run(workdir, patience=1000.0, wait=wait)
    assert len(waits) == 2 and list(found) == [2, 4]
    out = workdir / follow.FOLDER
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(found.values())
    for step, line in found.items():
        place = out / f"step_{step:08d}"
        metrics = json.loads((place / "metrics.json").read_text())
        likelihood = json.loads((place / "likelihood.json").read_text())
        assert line["frechet_distance"] == metrics["frechet_distance"]
        assert line["bits_per_image"] == likelihood["bits_per_image"]
        assert (likelihood["settings"]["step"], likelihood["n_images"]) == (step, 8)
        assert metrics["floor"]["frechet_distance"] > 0
    assert Run.read(out).curve("bits_per_image")[0] == [2, 4]

    # Once more: nothing is drawn or scored again; something that is missing is.
    assert run(workdir, wait=pytest.fail) == found
    (out / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert run(workdir, wait=pytest.fail) == found
    with pytest.raises(CheckpointError, match="num is 13 here and 12 there"):
        run(workdir, num=13)


def test_patience_ends_it_and_a_deleted_checkpoint_is_passed_over(
    digit_shards, tmp_path, monkeypatch, capsys
):
    changes = {"data.shards": digit_shards, "checkpoint.every": 1, "checkpoint.keep": 5}
    train(tiny(2, **changes), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    sample = follow.fid.sample

    def too_late(workdir, *arguments):
        shutil.rmtree(tmp_path / "checkpoints" / "1")
        return sample(workdir, *arguments)

    monkeypatch.setattr(follow.fid, "sample", too_late)
    waits = []
    assert run(tmp_path, patience=25.0, wait=waits.append) == {}
    assert waits == [10.0, 10.0, 5.0]
    assert "step 1: the run deleted it" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="expected the workdir of a training run"):
        run(tmp_path)
    assert not (tmp_path / follow.FOLDER).exists()
