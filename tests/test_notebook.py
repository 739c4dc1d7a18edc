"""docs/quickstart.ipynb runs from the first cell to the last, on a short run."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
PNG = b"\x89PNG\r\n\x1a\n"


def execute(code: str, namespace: dict) -> object:
    """Executes a cell; returns the value of its last line if that is an expression, as shown."""
    body = ast.parse(code).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), namespace)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), namespace)


@pytest.fixture(scope="module")
def executed(digits_run):
    """(names that the notebook defines, values that it shows)."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    assert [n for n, own in enumerate(tags) if "parameters" in own] == [0]
    namespace, shown = {}, []
    for number, cell in enumerate(cells):
        shown.append(execute("".join(cell["source"]), namespace))
        if number == 0:
            assert list(Path(namespace["workdir"]).parts[-2:]) == ["runs", "jpeg-digits"]
            namespace["workdir"] = str(digits_run)
    return namespace, [value for value in shown if value is not None]


def test_the_notebook_shows_three_pictures(executed):
    _, shown = executed
    assert [value._repr_png_()[:8] for value in shown] == [PNG] * 3


def test_the_notebook_samples_completes_and_scores(executed):
    names, _ = executed
    assert names["model"].step == 4
    assert len(names["samples"]) == 50 and set(names["samples"].labels) == {3}
    assert len(names["completions"]) == 6 and names["completions"].valid.all()
    prompt = names["representation"].prompt(names["tokens"], 0.5)
    for tokens in names["completions"].tokens:
        np.testing.assert_array_equal(tokens[: len(prompt)], prompt)
    assert len(names["digit_bits"]) == 100
    assert 0 < names["digit_bits"].mean() < names["noise_bits"].mean()
    assert sorted(names["order"]) == list(range(100)) and 0 <= names["accuracy"] <= 1
