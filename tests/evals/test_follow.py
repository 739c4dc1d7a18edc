"""evals.follow: every checkpoint of a run is evaluated, also after an interruption."""

import json
import shutil

import pytest

from evals import follow
from evals.features import extractors
from evals.reporting.results import Run, SettingsError
from jpeglm_jax.training.checkpoint import CheckpointError


@pytest.fixture
def workdir(digits_run, tmp_path):
    """A run of four steps whose last checkpoint is in `later`, to be written during the test."""
    folder = tmp_path / "run"
    shutil.copytree(digits_run, folder)
    (folder / "later").mkdir()
    shutil.move(folder / "checkpoints" / "4", folder / "later" / "4")
    return folder


def run(workdir, references, **options):
    extractor = extractors.make("digits")
    options = {"num": 12, "num_eval": 8, **options}
    return follow.follow(workdir, references, extractor=extractor, **options)


def test_new_checkpoints_are_evaluated_until_the_last_step(workdir, digit_files):
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:  # meanwhile the run writes its last checkpoint
            shutil.move(workdir / "later" / "4", workdir / "checkpoints" / "4")

    found = run(workdir, digit_files, patience=1000.0, wait=wait)
    assert len(waits) == 2 and list(found) == [2, 4]
    out = workdir / follow.FOLDER
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(found.values())
    for step, line in found.items():
        folder = out / f"step_{step:08d}"
        metrics = json.loads((folder / "metrics.json").read_text())
        likelihood = json.loads((folder / "likelihood.json").read_text())
        assert line["frechet_distance"] == metrics["frechet_distance"]
        assert line["bits_per_image"] == likelihood["bits_per_image"]
        assert (likelihood["settings"]["step"], likelihood["n_images"]) == (step, 8)
        assert metrics["floor"]["frechet_distance"] > 0
    assert Run.read(out).curve("bits_per_image")[0] == [2, 4]
    written = b"".join(path.read_bytes() for path in (out / "tensorboard").glob("events.*"))
    for name in (b"eval/frechet_distance", b"eval/bits_per_image", b"samples/valid"):
        assert written.count(name) >= 2

    # Again: finished checkpoints are kept, a missing one is evaluated.
    assert run(workdir, digit_files, wait=pytest.fail) == found
    (out / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert run(workdir, digit_files, wait=pytest.fail) == found
    with pytest.raises(SettingsError, match="num is 13 here and 12 there"):
        run(workdir, digit_files, num=13)


def test_a_deleted_checkpoint_is_skipped_and_patience_runs_out(
    workdir, digit_files, monkeypatch, capsys
):
    sample = follow.fid.sample

    def delete_first(workdir, *arguments):
        shutil.rmtree(f"{workdir}/checkpoints/2")
        return sample(workdir, *arguments)

    monkeypatch.setattr(follow.fid, "sample", delete_first)
    waits = []
    assert run(workdir, digit_files, patience=25.0, wait=waits.append) == {}
    assert waits == [10.0, 10.0, 5.0]
    assert "step 2 skipped" in capsys.readouterr().out


def test_a_folder_without_checkpoints_is_rejected(tmp_path, digit_files):
    with pytest.raises(CheckpointError, match="workdir of a training run"):
        run(tmp_path, digit_files)
    assert not (tmp_path / follow.FOLDER).exists()
