"""Training runs on the page: curves, sample grids, and `evals.follow`'s results.

`evals.report` puts them after the evaluations.
"""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.media.images import ImageError
from data_pipelines.representations.base import CONFIG_FILE
from evals.reporting import comparison, curves, page
from evals.reporting.curves import Line
from evals.reporting.numbers import number, share_error
from evals.reporting.page import Block, Cell, Charts, Column, Figure, Picture, Source, Table
from evals.reporting.results import Evaluation, ReportError, Run, command_line
from evals.sections import headlines

_VALID = "samples/valid"
_FOLLOWED = "evaluations"  # folder of `evals.follow` in a workdir

# The plots of a training run: title -> names of its curves; of a pair the second is dashed.
_CURVES = {
    "Loss, nats per token": ("train/loss", "eval/loss"),
    "Bits per image": ("train/bits_per_image", "eval/bits_per_image"),
    "Bits per clip": ("train/bits_per_clip", "eval/bits_per_clip"),
    "Bits per dimension": ("train/bits_per_dimension", "eval/bits_per_dimension"),
    "Bits per codec byte": ("train/bits_per_byte", "eval/bits_per_byte"),
    "Strictly valid samples": (_VALID,),
    "Strictly valid continuations": ("continuations/valid",),
    "Gradient norm": ("train/grad_norm",),
    "Learning rate": ("train/learning_rate",),
    "Tokens per second": ("perf/tokens_per_second",),
}


def training(runs: Sequence[Run]) -> list[Figure]:
    """Curves of all runs in the same plots, their last values, and the newest samples of each."""
    sources = [_source(run) for run in runs]
    charts = []
    for title, names in _CURVES.items():
        series = {
            _series(run, name, names, runs): Line(
                *run.curve(name), colour=number_, dashed=name != names[0]
            )
            for number_, run in enumerate(runs)
            for name in names
            if run.curve(name)[0]
        }
        if any(len(line.x) > 1 for line in series.values()):
            charts.append(curves.lines(series, title, "step"))
    blocks: list[Block] = [Charts(charts)] if charts else []
    blocks.append(_last_values(runs))
    warnings: list[str] = []
    for run in runs:
        if run.samples:
            step, path = run.samples[-1]
            try:
                blocks.append(_samples(run, step, path, several=len(runs) > 1))
            except (ImageError, OSError) as error:
                warnings.append(f"{path}: {error}")
    return [Figure("Training", blocks, sources, "", warnings)]


def _series(run: Run, name: str, names: Sequence[str], runs: Sequence[Run]) -> str:
    """The name of a curve: of its run if there are several, and of the split in a pair."""
    split = name.partition("/")[0] if len(names) > 1 else ""
    own = run.name if len(runs) > 1 else ""
    return " ".join(filter(None, (own, split))) or run.name


def _last_values(runs: Sequence[Run]) -> Table:
    rows = [("Steps", [Cell(number(run.steps)) for run in runs])]
    for title, names in _CURVES.items():
        for name in names:
            if any(run.last(name) is not None for run in runs):
                split = f", {name.partition('/')[0]}" if len(names) > 1 else ""
                rows.append((title + split, [Cell(number(run.last(name))) for run in runs]))
    notes = comparison.differing([_flat(_config(run)) for run in runs])
    columns = [Column(run.name, note) for run, note in zip(runs, notes, strict=True)]
    return Table("Last values", columns, rows, folded=True)


def _samples(run: Run, step: int, path: epath.Path, *, several: bool) -> Picture:
    """The newest grid of what the run sampled itself."""
    share = _config(run).get("sample", {}).get("prefix_ratio", 0)
    what = f"Continuations of {share:g} of eval documents" if share else "Samples"
    caption = f"{what} at step {step:,}" + (f", {run.name}" if several else "")
    return page.picture(path, f"Grid: {caption}, of run {run.name}", caption)


def followed(runs: Sequence[Run]) -> list[Figure]:
    """The results of `evals.follow` for every checkpoint: distances, validity and bits by step."""
    found = [(run, lines) for run in runs if (lines := _followed(run)) is not None]
    if not found:
        return []
    last = [_last_evaluation(lines) for _, lines in found]
    notes = comparison.differing([comparison.settings_of(result) for result in last])
    colours = [runs.index(run) for run, _ in found]
    charts = []
    for name in dict.fromkeys(headlines.main_metric(result) for result in last):
        if name is None:
            continue
        series = {}
        for colour, (run, lines), result in zip(colours, found, last, strict=True):
            label = run.name if len(found) > 1 else headlines.title(name)
            series[label] = _line(lines, name, colour, result)
            floor = (result.get("floor") or {}).get(name)
            if floor is not None:
                text = f"{run.name} codec floor" if len(found) > 1 else "codec floor"
                series[text] = Line([0], [floor], colour=colour, dashed=True, level=True)
        charts.append(curves.lines(series, headlines.title(name), "step"))
    for name, title in (
        (_VALID, "Strictly valid, share"),
        ("bits_per_image", "Bits per image"),
        ("bits_per_clip", "Bits per clip"),
    ):
        series = {
            run.name: _line(lines, name, colour, result)
            for colour, (run, lines), result in zip(colours, found, last, strict=True)
            if lines.curve(name)[0]
        }
        if series:
            charts.append(curves.lines(series, title, "step"))
    sources = [
        Source(
            run.name,
            _follow_command(run, lines, result),
            {
                comparison.title(name): value
                for name, value in comparison.settings_of(result).items()
            },
            str(lines.folder / "metrics.jsonl"),
        )
        for (run, lines), result in zip(found, last, strict=True)
    ]
    warnings = [
        f"{run.name} has other settings: {note}"
        for (run, _), note in zip(found, notes, strict=True)
        if note
    ]
    text = "Every checkpoint, with the same settings; bands are one standard error"
    return [Figure("Checkpoints by step", [Charts(charts)], sources, text, warnings)]


def _line(lines: Run, name: str, colour: int, result: Mapping[str, Any]) -> Line:
    """The curve of a metric with its standard errors, if they are known."""
    steps, values = lines.curve(name)
    with_errors, errors = lines.curve(f"{name}_standard_error")
    if name == _VALID and result.get("codec"):
        requested = result["codec"]["requested"]
        errors = [share_error(value * requested, requested) for value in values]
        with_errors = steps
    return Line(steps, values, errors if with_errors == steps else None, colour)


def _followed(run: Run) -> Run | None:
    try:
        return Run.read(run.folder / _FOLLOWED)
    except ReportError:
        return None


def _last_evaluation(lines: Run) -> Mapping[str, Any]:
    """metrics.json of the newest evaluated checkpoint."""
    folder = lines.folder / f"step_{lines.steps:08d}"
    return Evaluation.read(folder, ("metrics",)).results["metrics"]


def _follow_command(run: Run, lines: Run, result: Mapping[str, Any]) -> str:
    """The command line of `evals.follow`, with the features of one of its results."""
    settings = json.loads((lines.folder / "settings.json").read_text())
    names = ("references", "num", "num_eval", "seed")
    flags = {"workdir": run.folder, **{name: settings[name] for name in names}}
    words = [word for word in shlex.split(result["command"]) if word.startswith("--")]
    features = [word for word in words if _flag(word) not in (*flags, "step", "out")]
    command = command_line("evals.follow", flags, {"num_eval": 0, "seed": 0})
    return shlex.join([*shlex.split(command), *features])


def _flag(word: str) -> str:
    return word.removeprefix("--").partition("=")[0]


def facts(run: Run) -> str:
    """A line about a run: steps, representation and data."""
    config = _config(run)
    parts = [f"step {run.steps:,}" + (f" of {config['steps']:,}" if config.get("steps") else "")]
    # What preparation made of the configuration, such as a trained tokenizer.
    representation = {**config.get("representation", {}), **_json(run, CONFIG_FILE)}
    tokenizer = representation.get("tokenizer")
    if isinstance(tokenizer, Mapping):
        representation["tokenizer"] = tokenizer.get("kind")
    names = ("name", "size", "mode", "quality", "tokenizer")
    parts += [
        f"{'' if name in ('name', 'mode') else name + ' '}{page.setting(representation[name])}"
        for name in names
        if representation.get(name) is not None
    ]
    data = config.get("data", {})
    if data.get("shards") or data.get("source"):
        parts.append(f"trained on {data.get('source') or data['shards']}")
    return f"{run.name}: {', '.join(parts)}"


def _source(run: Run) -> Source:
    return Source(run.name, _command(run), _flat(_config(run)), str(run.folder / "metrics.jsonl"))


def _command(run: Run) -> str:
    """The command line that trains such a run: the preset, and what differs from it."""
    config = _config(run)
    words = ["python", "-m", "jpeglm_jax.train", f"--workdir={run.folder}"]
    name, preset = config.get("representation", {}).get("name"), config.get("preset")
    defaults: Mapping[str, Any] = {}
    try:
        module = importlib.import_module(f"configs.{name}")
        defaults = _flat(module.get_config(preset).to_dict())
        words.append(f"--config=configs/{name}.py:{preset}")
    except (ImportError, ValueError):  # a representation or a preset of the user's own
        words.append("--config=FILE")
    for key, value in _flat(config).items():
        if key != "preset" and (key not in defaults or _same(value) != _same(defaults[key])):
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            words.append(f"--config.{key}={text}")
    return shlex.join(words)


def _same(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _config(run: Run) -> dict[str, Any]:
    return _json(run, "config.json")


def _json(run: Run, name: str) -> dict[str, Any]:
    """The contents of a JSON file of a run; {} if there is none."""
    path: epath.Path = run.folder / name
    return json.loads(path.read_text()) if path.is_file() else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
