"""The command of a result gives its figures again."""

import shlex
import shutil
import subprocess
import sys

import pytest

from evals.features import extractors
from evals.reporting.results import MEMBERS, read_result
from evals.suite import suite


def figures(result):
    return {name: value for name, value in result.items() if isinstance(value, float)}


def test_printed_commands_give_the_same_figures(digits_run, digit_files, tmp_path):
    out = tmp_path / "an evaluation"
    extractor = extractors.make("digits")
    suite(digits_run, digit_files, out, extractor, num=20, num_eval=30, seed=3, step=2)
    kinds = ("metrics", "likelihood")
    before = {kind: read_result(out / f"{kind}.json") for kind in kinds}
    assert before["likelihood"]["settings"]["subset_seed"] == 3
    shutil.rmtree(out)
    for kind in kinds:
        words = shlex.split(before[kind]["command"])
        assert words[0] == "python"
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        again = read_result(out / f"{kind}.json")
        assert len(figures(again)) > 5
        assert figures(again) == pytest.approx(figures(before[kind]), rel=1e-5)
        for member in MEMBERS:
            assert again[member] == before[kind][member]
