"""From a workdir to files, by the command that a user gives."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from evals import digits
from jpeglm_jax import checkpoint
from jpeglm_jax.train import train
from tests.jpeglm_jax.conftest import tiny

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(digit_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny(3, **{"data.shards": digit_shards, "optimizer.ema": 0.5, "checkpoint.every": 2})
    train(config, folder)
    return folder


def generate(workdir, out, *arguments):
    return subprocess.run(
        [
            *(sys.executable, "-m", "jpeglm_jax.generate"),
            *(f"--checkpoint={workdir}", f"--out={out}", *arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_document_asked_for_is_accounted_for(workdir, tmp_path):
    result = generate(workdir, tmp_path, "--num=12", "--batch_size=5")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(12))
    assert [line["label"] for line in lines] == [*range(10), 0, 1]
    for line in lines:
        assert line["valid"] == (line["error"] == "")
        if line["file"]:
            assert (tmp_path / line["file"]).read_bytes().startswith(b"\xff\xd8")
    assert Image.open(tmp_path / "grid.png").mode == "RGB"
    judged = digits.judge(tmp_path)
    assert judged["requested"] == 12
    assert judged["classifier_accuracy"] > 0.97


def test_real_digits_are_recognised(digit_shards, tmp_path):
    from data_pipelines.shards import Shards

    documents = Shards(digit_shards, "heldout")
    lines = []
    for number, tokens in enumerate(documents.read(range(60))):
        (tmp_path / f"{number}.jpg").write_bytes(documents.representation.to_bytes(tokens))
        line = {"file": f"{number}.jpg", "label": int(documents.labels[number])}
        lines.append(json.dumps(line | {"valid": documents.representation.inspect(tokens).valid}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    judged = digits.judge(tmp_path)
    assert judged["strictly_valid"] == 1.0
    assert judged["recognised"] > 0.95


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--label=10"], "label is 10; this model knows 0 to 9"),
        (["--step=7"], "there is no checkpoint of step 7"),
        (["--num=0"], "num is 0"),
        (["--top_p=2"], "top_p is 2.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(workdir, tmp_path, arguments, sentence):
    result = generate(workdir, tmp_path, *arguments)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="expected the workdir of a training run"):
        checkpoint.load(tmp_path)


def test_another_checkpoint_can_be_loaded_and_averages_are_preferred(workdir):
    earlier, last = checkpoint.load(workdir, 2), checkpoint.load(workdir)
    assert (earlier.step, last.step) == (2, 3)
    shapes = last.recipe.abstract_state().params
    where = last.recipe.state_shardings(last.mesh).params
    plain = checkpoint.Checkpoints(workdir).restore_params(shapes, where)
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), plain, last.params)
    assert all(jax.tree.leaves(differs))
