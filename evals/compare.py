"""Example: python -m evals.compare --config=configs/compare.py --out=comparison

Compares representations of the same images: prepares, tunes, trains, samples and scores each, at
equal images seen and at equal training FLOPs. What is finished is kept: the same command resumes,
and --minutes=25 runs a piece of at most that long. Several processes with the same command share
the work. Writes compare.json and compare.html, and prints the table.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from configs.compare import get_config
from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals.comparison import page, plan, summary
from evals.comparison.once import Deadline, OutOfTime, Task, share
from evals.comparison.stages import Stages
from evals.features import extractors
from evals.features.base import Extractor
from evals.reporting.results import claim_folder, command_line, write_json
from jpeglm_jax.hardware.compilation_cache import keep_compiled
from jpeglm_jax.hardware.large_pages import restart_with_large_pages
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

RESULT = "compare.json"


def compare(
    config: ConfigDict, out: epath.PathLike, extractor: Extractor | None, minutes: float = 0.0
) -> dict[str, Any]:
    """Runs a comparison, or resumes it, and writes compare.json to its folder.

    Args:
      config: see configs/compare.py.
      out: folder of the comparison; it holds one.
      extractor: of the features that samples are scored with; None: they are not scored.
      minutes: after which it stops, to be resumed; 0: when it is complete.

    Returns:
      The contents of compare.json.

    Raises:
      OutOfTime: the minutes are over.
      PlanError: the configuration contradicts itself.
      OverfitError: a candidate cannot learn a few documents by heart.
      SettingsError: the folder holds another comparison.
      Interrupted: by SIGTERM or Ctrl-C while a model was trained.
    """
    plan.check(config, scored=extractor is not None)
    out = epath.Path(out)
    settings = _settings(config, extractor)
    claim_folder(out, settings)
    deadline = Deadline(minutes)
    stages = Stages(config, out, extractor, deadline)
    for phase in _phases(config, stages):
        share(phase, deadline)
    result = summary.summarise(config, stages, settings, _command(config, out))
    write_json(out / RESULT, result)
    page.write(result, out)
    return result


def _phases(config: ConfigDict, stages: Stages) -> Iterator[list[Task]]:
    """The tasks of a comparison; those of a phase need all phases before it and not each other."""

    def prepared(candidate: str) -> None:
        stages.tokenizer(candidate)
        stages.prepare(candidate)
        stages.floor(candidate)

    yield [functools.partial(prepared, name) for name in config.candidates]
    yield [functools.partial(stages.overfit, name) for name in config.candidates]
    tuned = config.learning_rates if len(config.learning_rates) > 1 else ()
    yield [functools.partial(stages.sweep, name, r) for name in config.candidates for r in tuned]

    def finished(run: plan.Run) -> None:
        stages.train(run, stages.learning_rate(run.candidate))
        stages.sample(run)
        stages.score(run)
        if stages.completes(run):
            stages.complete(run)

    yield [functools.partial(finished, run) for run in plan.runs(config)]
    analyses = [functools.partial(stages.small_elements, name) for name in config.small_elements]
    yield [*([stages.long_tail] if config.long_tail else []), *analyses]


def _settings(config: ConfigDict, extractor: Extractor | None) -> dict[str, Any]:
    """All that decides the result, by the names that change it on the command line."""
    found = dict(_flat("config", config.to_dict()))
    if extractor is not None:
        found |= {"network": extractor.name}
        found |= {f"network_{name}": value for name, value in extractor.settings.items()}
    return json.loads(json.dumps({name: value for name, value in found.items() if value != {}}))


def _command(config: ConfigDict, out: epath.Path) -> str:
    """The command line of a comparison: its preset, and what differs from that."""
    preset = dict(_flat("config", get_config(config.preset).to_dict()))
    given = {"config": f"configs/compare.py:{config.preset}"}
    given |= dict(_flat("config", config.to_dict()))
    return command_line("evals.compare", {**given, "out": str(out)}, preset)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    restart_with_large_pages()
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    config, values = flags.FLAGS.config, flags.FLAGS
    features = config.features
    extractor = None
    if features.name:
        extractor = extractors.make(features.name, weights=features.weights, dims=features.dims)
    try:
        # Runs share their programs; a step's differs by learning rate and number of steps. The
        # folder lasts as long as the process: a CPU's code is for this very processor.
        with tempfile.TemporaryDirectory() as compiled:
            keep_compiled(compiled, compiled)
            result = compare(config, values.out, extractor, values.minutes)
    except OutOfTime:
        print(f"{values.minutes:g} minutes are over; run the same command again to resume")
        return
    print(summary.table(result))
    print(f"wrote {epath.Path(values.out) / RESULT}")


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to compare: FILE[:PRESET].")
    flags.DEFINE_string("out", None, "Folder of the comparison.", required=True)
    flags.DEFINE_float("minutes", 0.0, "Stop after these, to be resumed; 0: when complete.", 0.0)
    flags.mark_flag_as_required("config")


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError)
