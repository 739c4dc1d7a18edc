"""A run evaluated by one command."""

import json
import subprocess
import sys

import pytest

from evals.features import extractors
from evals.suite import suite


def test_one_command_leaves_every_result_and_a_page_of_them(digits_run, tmp_path):
    out = tmp_path / "out"
    page = suite(digits_run, "digits", out, extractors.make("digits"), num=20, num_held_out=30)
    found = {
        name: json.loads((out / f"{name}.json").read_text())
        for name in ("metrics", "likelihood", "compression")
    }
    assert found["metrics"]["n_generated"] == 20
    assert found["likelihood"]["n_images"] == found["compression"]["n_images"] == 30
    text = page.read_text()
    for heading in ("Training", "Distances from real images", "Likelihood", "Compression"):
        assert f">{heading}</h2>" in text
    assert "frechet distance" in text and ">fid<" not in text
    assert "the model&#x27;s log-likelihood" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--references=folder:photos"], "give --weights of the FID network"),
        (["--workdir=nowhere"], "nowhere has no folder checkpoints"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    digits_run, tmp_path, arguments, sentence
):
    command = [sys.executable, "-m", "evals.suite", f"--workdir={digits_run}", "--out=out"]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert sentence in result.stderr and "Traceback" not in result.stderr
