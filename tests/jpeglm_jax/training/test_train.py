"""Whole runs: killed and resumed, refused, diverged, started from another."""

import json
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from data_pipelines.loading.joined_shards import JoinedShards
from jpeglm_jax.train import NotFinite, train
from jpeglm_jax.training.checkpoint import CheckpointError
from jpeglm_jax.training.data import make_loader
from tests.jpeglm_jax.conftest import tiny
from tests.jpeglm_jax.runs import (
    ROOT,
    command,
    environment,
    latest_step,
    lines,
    wait_for_step,
    weights,
)


def test_a_killed_run_goes_on_to_the_very_same_end(digit_shards, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = {"cwd": ROOT, "env": environment(), "stdout": subprocess.DEVNULL}
    subprocess.run(command(digit_shards, straight), check=True, **options)

    process = subprocess.Popen(command(digit_shards, killed), **options)
    metrics = killed / "metrics.jsonl"
    wait_for_step(process, killed, 110)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert latest_step(killed) in (50, 100)
    with open(metrics, "a") as file:
        file.write('{"step": 1')  # a line that the kill cut short
    subprocess.run(command(digit_shards, killed), check=True, **options)

    assert lines(killed) == lines(straight)
    assert {line["step"] for line in lines(killed)} >= {7, 60, 120, 196, 200}
    jax.tree.map(np.testing.assert_array_equal, weights(killed), weights(straight))


def test_a_run_from_other_weights_begins_where_they_ended(digit_shards, tmp_path):
    first = train(tiny(**{"data.shards": digit_shards, "evaluate.every": 12}), tmp_path / "a")
    config = tiny(1, **{"data.shards": digit_shards, "evaluate.every": 1})
    config.init_from = str(tmp_path / "a")
    config.optimizer.learning_rate = 0.0
    assert train(config, tmp_path / "b") == pytest.approx(first)


def test_a_checkpoint_of_another_model_is_refused_naming_both(digit_shards, tmp_path):
    train(tiny(2, **{"data.shards": digit_shards}), tmp_path)
    config = tiny(2, **{"data.shards": digit_shards, "model.ffn": 96})
    with pytest.raises(CheckpointError, match="another model: ffn is 96 here and 64 there"):
        train(config, tmp_path)


def test_a_checkpoint_of_another_representation_is_refused(digit_shards, tmp_path):
    train(tiny(2, **{"data.shards": digit_shards}), tmp_path / "a")
    config = tiny(2, **{"data.source": "digits", "representation.quality": 30})
    config.init_from = str(tmp_path / "a")
    with pytest.raises(CheckpointError, match="another representation: .*quality is 30 here"):
        train(config, tmp_path / "b")


def test_a_checkpoint_of_other_batches_is_refused(digit_shards, tmp_path):
    train(tiny(2, **{"data.shards": digit_shards}), tmp_path)
    with pytest.raises(CheckpointError, match="another data: batches"):
        train(tiny(2, **{"data.shards": digit_shards, "batch_size": 16}), tmp_path)


def test_a_diverging_run_stops_says_where_and_keeps_what_was_good(digit_shards, tmp_path):
    changes = {"data.shards": digit_shards, "checkpoint.every": 2, "optimizer.clip_norm": 0.0}
    config = tiny(12, **changes)
    config.optimizer.learning_rate = 1e30
    with pytest.raises(NotFinite, match=r"step \d+: .*Gradients that are not: .*digits/\d+"):
        train(config, tmp_path)
    written = lines(tmp_path)
    assert all(np.isfinite(line["train/loss"]) for line in written)
    (path,) = tmp_path.glob("not_finite_*.json")
    replay = json.loads(path.read_text())
    documents = JoinedShards([digit_shards], "train")
    plan = make_loader(config, documents, 0.0).plan
    rows = plan.rows(8 * (replay["step"] - 1) + np.arange(8))
    assert [[piece["document"] for piece in row] for row in replay["rows"]] == [
        row[:, 0].tolist() for row in rows
    ]
    for piece in replay["rows"][0]:
        assert piece["key"] == documents.key(piece["document"])
    latest = latest_step(tmp_path)
    assert latest is None or all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights(tmp_path))
    )


def test_a_run_writes_what_it_says(digit_shards, tmp_path, capsys):
    changes = {"data.shards": digit_shards, "sample.every": 12, "evaluate.every": 12}
    train(tiny(12, **changes), tmp_path)
    said = capsys.readouterr().out
    for name in ("checkpoints", "metrics.jsonl", "samples"):
        assert str(tmp_path / name) in said
    assert (tmp_path / "samples" / "step_00000012.png").stat().st_size > 100
    assert list((tmp_path / "tensorboard").glob("events*"))
    last = [line for line in lines(tmp_path) if line["step"] == 12]
    assert {"train/loss", "eval/bits_per_image", "samples/valid"} <= set().union(*last)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config=configs/jpeg.py", "--config.optimizer.learning_rat=1"], "learning_rate"),
        (["--config=configs/jpeg.py:digit"], "it has digits"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_one(arguments, sentence, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "jpeglm_jax.train", f"--workdir={tmp_path}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert sentence in result.stderr
