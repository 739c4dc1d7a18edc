"""The published schema of results, for the tests of all jobs that write them."""

import json
import pathlib

import jsonschema

from evals.reporting.results import read_result

SCHEMA = json.loads((pathlib.Path(__file__).parents[2] / "docs/results.schema.json").read_text())


def follows_schema(result, path=None):
    """Whether a result follows the schema, and the file at `path` holds it; else it raises."""
    jsonschema.validate(result, SCHEMA)
    return path is None or read_result(path) == result
