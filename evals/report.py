"""Example: python -m evals.report --workdirs=runs/jpeg-digits --evaluations=evaluation --out=a.html

Writes one self-contained HTML page from the results of training runs and evaluation jobs: tables,
curves, samples, completions with their originals, and links to the files. Several runs or
evaluations, separated by commas, are shown in columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from absl import flags
from etils import epath

from data_pipelines.media.images import ImageError
from data_pipelines.utils import command
from data_pipelines.utils.files import write_atomically
from evals.reporting import curves, page
from evals.reporting.page import Html
from evals.reporting.results import Evaluation, ReportError, Run
from evals.sections import KINDS

# The figures of a training run: title -> names of its curves.
_CURVES = {
    "Loss, nats per token": ("train/loss", "eval/loss"),
    "Bits per image": ("train/bits_per_image", "eval/bits_per_image"),
    "Bits per clip": ("train/bits_per_clip", "eval/bits_per_clip"),
    "Bits per codec byte": ("train/bits_per_byte", "eval/bits_per_byte"),
    "Strictly valid samples": ("samples/valid",),
    "Gradient norm": ("train/grad_norm",),
    "Learning rate": ("train/learning_rate",),
    "Tokens per second": ("perf/tokens_per_second",),
}


def report(runs: Sequence[Run], evaluations: Sequence[Evaluation], out: epath.PathLike) -> None:
    """Writes the page.

    Args:
      runs: training runs.
      evaluations: folders of evaluation jobs.
      out: the .html file; links to other files are relative to its folder.
    """
    sections = {}
    if evaluations:
        sections["Summary"] = _summary(evaluations, out)
    if runs:
        sections["Training"] = _training(runs, out)
    for kind in KINDS:
        found = [one for one in evaluations if kind in one.results]
        if found:
            sections[KINDS[kind].heading] = KINDS[kind].render(found, out)
    names = ", ".join([one.name for one in runs] + [one.name for one in evaluations])
    text = page.document(f"Report: {names}", sections)
    out = epath.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text.encode())


def _summary(evaluations: Sequence[Evaluation], out: epath.PathLike) -> Html:
    """The results of every evaluation, with links to their files."""
    rows = [
        (one.name, KINDS[kind].heading, page.link(one.path(kind), out))
        for one in evaluations
        for kind in one.results
    ]
    return page.table("Results", ("Evaluation", "Section", "File"), rows)


def _training(runs: Sequence[Run], out: epath.PathLike) -> Html:
    parts = [_last_values(runs)]
    figures = []
    for title, names in _CURVES.items():
        series = {
            f"{run.name}: {_title(name)}" if len(runs) > 1 else _title(name): run.curve(name)
            for run in runs
            for name in names
            if run.curve(name)[0]
        }
        if series:
            figures.append(curves.lines(series, title, "step", ""))
    parts.append(page.side_by_side(figures))
    for run in runs:
        parts.append(page.element("h3", f"Run {run.name}"))
        parts += _samples(run)
        links = [page.link(path, out) for path in run.files]
        parts.append(page.element("p", "Files: ", *_between(links, ", ")))
    return page.joined(parts)


def _last_values(runs: Sequence[Run]) -> Html:
    names = [name for group in _CURVES.values() for name in group]
    rows = [
        (_title(name), *(run.last(name) for run in runs))
        for name in names
        if any(run.last(name) is not None for run in runs)
    ]
    rows.insert(0, ("steps", *(run.steps for run in runs)))
    return page.table("Last values", ("", *(run.name for run in runs)), rows)


def _samples(run: Run) -> list[Html]:
    """The newest grid of samples."""
    if not run.samples:
        return []
    step, path = run.samples[-1]
    caption = f"Samples after {step:,} steps."
    try:
        return [page.picture(path, f"Grid of samples of run {run.name}", caption)]
    except ImageError as error:
        return [page.notes([f"{path}: {error}"])]


def _title(name: str) -> str:
    return name.replace("/", ": ").replace("_", " ")


def _between(parts: Iterable[Html], separator: str) -> list[Html]:
    result: list[Html] = []
    for part in parts:
        result += [part] if not result else [page.escape(separator), part]
    return result


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
