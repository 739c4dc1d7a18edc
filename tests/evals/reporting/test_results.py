"""Result files: their schema, the reader that refuses newer ones, command lines."""

import json
import shlex

import jsonschema
import pytest

from evals.reporting.results import (
    MEMBERS,
    SCHEMA_VERSION,
    Evaluation,
    ReportError,
    SchemaError,
    command_line,
    make_result,
    read_result,
    write_json,
)
from tests.evals.schema import SCHEMA, follows_schema


def example(**changes):
    found = make_result(
        "metrics",
        "python -m evals.fid --generated=a --out=b",
        {"network": "digits", "dimensions": 64, "prompted": False, "ratios": [0.5]},
        {"fid": 2.5, "fid_standard_error": 0.5},
        versions={"jax": "1"},
        warnings=["a sentence"],
        not_computed={"kid": "a reason"},
    )
    return {**found, **changes}


def test_a_result_follows_the_schema_and_is_read_again(tmp_path):
    assert SCHEMA["properties"]["schema_version"] == {
        "description": "Version of this schema.",
        "const": SCHEMA_VERSION,
    }
    assert set(SCHEMA["required"]) == set(MEMBERS)
    assert follows_schema(example())
    for name, wrong in [("settings", {"a": {"b": 1}}), ("schema_version", 2), ("kind", "other")]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(example(**{name: wrong}), SCHEMA)
    write_json(tmp_path / "metrics.json", example())
    assert read_result(tmp_path / "metrics.json") == example()
    assert Evaluation.read(tmp_path, ("metrics", "video")).results == {"metrics": example()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, r"metrics\.json has schema_version 2, this program reads up to 1"),
        ({"schema_version": None}, "has no schema_version"),
        ({"schema_version": True}, "has no schema_version"),
        ({"kind": "video"}, "kind 'video', expected 'metrics'"),
        ({"settings": []}, "settings is"),
        ({"settings": {"network": {"name": "x"}}}, "setting network"),
        ({"warnings": None}, "warnings is None"),
    ],
)
def test_newer_and_malformed_results_are_refused_by_name(tmp_path, changes, message):
    (tmp_path / "metrics.json").write_text(json.dumps(example(**changes)))
    with pytest.raises(SchemaError, match=message):
        read_result(tmp_path / "metrics.json")
    with pytest.raises(ReportError, match=r"metrics\.json"):
        Evaluation.read(tmp_path, ("metrics",))


def test_a_figure_cannot_replace_a_member():
    with pytest.raises(SchemaError, match="warnings"):
        make_result("metrics", "python", {}, {"warnings": 1}, versions={})


def test_a_command_line_has_the_flags_that_differ_from_defaults():
    flags = {"generated": "a b", "step": None, "num": 5, "floor": False, "ratios": [0.25, 0.5]}
    text = command_line("evals.fid", {**flags, "dims": "2048"}, {"dims": "2048", "num": 4})
    assert text == "python -m evals.fid '--generated=a b' --num=5 --nofloor --ratios=0.25,0.5"
    assert shlex.split(text)[3] == "--generated=a b"
