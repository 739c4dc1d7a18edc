"""Example: python -m evals.report --workdirs=runs/jpeg-digits --evaluations=evaluation --out=a.html

Writes one self-contained HTML page from the results of training runs and evaluation jobs: the main
figures on top, samples next to their nearest real images, tables, curves, completions with their
originals. Under each figure are its settings and the command that gives it again. Several runs or
evaluations, separated by commas, are compared in columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from absl import flags
from etils import epath

from data_pipelines.utils import command
from data_pipelines.utils.files import write_atomically
from evals.reporting import comparison
from evals.reporting.page import Page, Section, render
from evals.reporting.results import Evaluation, ReportError, Run, command_line
from evals.sections import headlines, samples
from evals.sections import runs as training_runs
from evals.sections.kinds import KINDS

T = TypeVar("T", Run, Evaluation)


def report(runs: Sequence[Run], evaluations: Sequence[Evaluation], out: epath.PathLike) -> None:
    """Writes the page.

    Args:
      runs: training runs.
      evaluations: folders of evaluation jobs.
      out: the .html file.
    """
    runs, evaluations = _distinct(runs), _distinct(evaluations)
    found = [Section("samples", "Samples", samples.samples(evaluations), columns=True)]
    for kind, (heading, figures, _) in KINDS.items():
        own = [one for one in evaluations if kind in one.results]
        found.append(Section(kind, heading, figures(own) if own else []))
    found.append(Section("checkpoints", "Checkpoints", training_runs.followed(runs)))
    found.append(Section("training", "Training", training_runs.training(runs) if runs else []))
    cards = headlines.cards(
        evaluations, {kind: (kind, entry.headlines) for kind, entry in KINDS.items()}
    )
    page = Page(
        title=", ".join(one.name for one in runs or evaluations),
        facts=[*map(training_runs.facts, runs), *filter(None, map(_facts, evaluations))],
        cards=cards,
        sections=[section for section in found if section.figures],
        command=_command(runs, evaluations, out),
        versions=_versions(evaluations),
    )
    out = epath.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, render(page).encode())


def _distinct(named: Sequence[T]) -> list[T]:
    """The same with different names: of folders with equal names, more of the path is taken."""
    names = [one.name for one in named]
    result = []
    for one in named:
        name, parts = one.name, one.folder.parts
        if names.count(name) > 1:
            depth = next(
                (
                    depth
                    for depth in range(2, len(parts) + 1)
                    if sum(other.folder.parts[-depth:] == parts[-depth:] for other in named) == 1
                ),
                len(parts),
            )
            name = "/".join(parts[-depth:])
        result.append(dataclasses.replace(one, name=name))
    return result


def _facts(evaluation: Evaluation) -> str:
    """Which model was evaluated; "" if the results do not state it."""
    parts = []
    for result in evaluation.results.values():
        settings = comparison.settings_of(result)
        if settings.get("step") is not None:
            of = f" of {settings['workdir']}" if settings.get("workdir") else ""
            parts.append(f"checkpoint step {settings['step']:,}{of}")
    return f"{evaluation.name}: {'; '.join(dict.fromkeys(parts))}" if parts else ""


def _versions(evaluations: Sequence[Evaluation]) -> list[str]:
    lines = {
        f"{one.name}: "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items()): None
        for one in evaluations
        for result in one.results.values()
        if result.get("versions")
    }
    return list(lines)


def _command(runs: Sequence[Run], evaluations: Sequence[Evaluation], out: epath.PathLike) -> str:
    named: dict[str, Sequence[Run] | Sequence[Evaluation]]
    named = {"workdirs": runs, "evaluations": evaluations}
    given = {flag: [one.folder for one in found] for flag, found in named.items() if found}
    return command_line("evals.report", {**given, "out": out})


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    values = flags.FLAGS
    if not values.workdirs and not values.evaluations:
        raise ReportError("no results to report; give --workdirs or --evaluations")
    runs = [Run.read(folder) for folder in values.workdirs]
    evaluations = [Evaluation.read(folder, tuple(KINDS)) for folder in values.evaluations]
    report(runs, evaluations, values.out)
    print(f"wrote {values.out}")


if __name__ == "__main__":
    flags.DEFINE_list("workdirs", [], "Workdirs of training runs.")
    flags.DEFINE_list("evaluations", [], "Folders of evaluation jobs (their --out).")
    flags.DEFINE_string("out", "report.html", "The page to write.")
    command.run(main)
