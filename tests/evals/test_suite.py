"""evals.suite: all evaluations of a run by one command."""

import json
import subprocess
import sys

import pytest

from evals.features import extractors
from evals.reporting.results import read_result
from evals.suite import suite
from tests.evals.reporting.reader import read
from tests.evals.schema import follows_schema


def test_suite_writes_every_result_and_the_page(digits_run, digit_files, tmp_path):
    out = tmp_path / "out"
    page = suite(digits_run, digit_files, out, extractors.make("digits"), num=20, num_eval=30)
    for name in ("metrics", "likelihood", "compression"):
        assert follows_schema(read_result(out / f"{name}.json"))
    found = {
        name: json.loads((out / f"{name}.json").read_text())
        for name in ("metrics", "likelihood", "compression")
    }
    assert found["metrics"]["n_generated"] == 20
    assert found["likelihood"]["n_images"] == found["compression"]["n_images"] == 30
    shown = read(page.read_text())
    names = ["samples", "metrics", "likelihood", "compression", "training"]
    assert [each.attributes["id"] for each in shown.all("section")] == ["summary", *names]
    assert len(shown.by_id("samples").one("ul", "tiles").all("img")) == 20
    rows = {head.text for head in shown.all("th") if head.attributes["scope"] == "row"}
    assert {"Fréchet distance ↓", "model log-likelihood"} <= rows
    assert not any(row.startswith("FID") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--references=folder:photos"], "give --weights"),
        (["--workdir=nowhere"], "nowhere"),
    ],
)
def test_unusable_arguments_give_one_message(digits_run, arguments, message):
    command = [sys.executable, "-m", "evals.suite", f"--workdir={digits_run}", "--out=out"]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr
