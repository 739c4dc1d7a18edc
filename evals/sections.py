"""How each kind of result is shown in a report: one function a kind, listed in KINDS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from evals import page
from evals.page import Html
from evals.results import Evaluation

# What is no number of the evaluation itself.
_FIGURES = {
    "generated": lambda result: result,
    "generated, references coded": lambda result: result.get("against_coded_references"),
    "floor: references coded": lambda result: result.get("floor"),
}


class Kind(NamedTuple):
    """A kind of result: its heading in a report, and how all of that kind are shown."""

    heading: str
    show: Callable[[Sequence[Evaluation], epath.PathLike], Html]


def distances(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """metrics.json of `evals.fid`: the three figures side by side, and what became of the files."""
    columns: dict[str, Mapping[str, Any]] = {}
    for one in evaluations:
        for name, take in _FIGURES.items():
            values = take(one.results["metrics"])
            if values:
                columns[f"{one.name}: {name}" if len(evaluations) > 1 else name] = values
    names = _numbers(columns.values())
    rows = [
        (
            name.replace("_", " "),
            *(
                page.value_and_error(values.get(name), values.get(f"{name}_standard_error"))
                for values in columns.values()
            ),
        )
        for name in names
    ]
    parts = [page.table("Distances", ("", *columns), rows)]
    counts = [
        ("images judged", *(one.results["metrics"].get("n_generated") for one in evaluations)),
        ("references", *(one.results["metrics"].get("n_references") for one in evaluations)),
    ]
    codecs = [one.results["metrics"].get("codec") or {} for one in evaluations]
    for name in dict.fromkeys(name for codec in codecs for name in codec):
        counts.append((name.replace("_", " "), *(codec.get(name) for codec in codecs)))
    parts.append(page.table("Counts", ("", *(one.name for one in evaluations)), counts))
    for one in evaluations:
        result = one.results["metrics"]
        missing = [f"{name}: not computed: {why}" for name, why in result["not_computed"].items()]
        parts.append(page.notes([*result["warnings"], *missing]))
    return page.joined(parts)


def _numbers(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics, each once, in order."""
    names = [
        name
        for result in results
        for name, value in result.items()
        if isinstance(value, float) and not name.endswith("_standard_error")
    ]
    return list(dict.fromkeys(names))


KINDS = {
    "metrics": Kind("Distances from real images", distances),
}
