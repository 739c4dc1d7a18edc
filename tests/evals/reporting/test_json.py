"""JSON of the project has no NaN and no infinity."""

import json
import math

import pytest

from data_pipelines.utils.files import null_if_not_finite, to_json
from data_pipelines.utils.seeds import check_seed
from evals.reporting.results import Run
from jpeglm_jax.training.log import MetricsLog


def test_numbers_that_are_not_finite_become_null():
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": math.inf}], "d": "nan", "e": 3}
    assert null_if_not_finite(value) == {
        "a": None,
        "b": [1.5, None, {"c": None}],
        "d": "nan",
        "e": 3,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_not_written(value):
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": value})


def test_metrics_of_a_run_are_null_where_they_are_not_finite(tmp_path):
    log = MetricsLog(tmp_path, 0, 0, tensorboard=False)
    log.write(1, {"train/loss": 2.0})
    log.write(2, {"train/loss": math.nan})
    log.close()

    def refuse(name):
        raise AssertionError(name)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(text, parse_constant=refuse)["train/loss"] for text in lines] == [2.0, None]
    assert Run.read(tmp_path).curve("train/loss") == ([1], [2.0])


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64 + 1])
def test_seeds_that_would_repeat_others_are_refused(seed):
    with pytest.raises(ValueError, match=f"seed is {seed}"):
        check_seed(seed)
    assert check_seed(2**32 - 1) == 2**32 - 1
