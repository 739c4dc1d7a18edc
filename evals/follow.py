"""Example: python -m evals.follow --workdir=runs/mine --references=folder:PHOTOS --weights=...

Evaluates every checkpoint of a run as it is written: distances of generated images from real ones,
and bits of the eval split. Into the run's workdir it writes evaluations/step_N/ (the results of
evals.fid and evals.likelihood), evaluations/metrics.jsonl, a line per checkpoint, and the same
numbers for TensorBoard in evaluations/tensorboard.

It ends when the checkpoint of the run's last step has been evaluated, or after --patience seconds
without a new one (0: as soon as there is none). A restarted job resumes: finished evaluations are
kept. A checkpoint that the run deleted before its evaluation is skipped with a message.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath
from tensorboardX import SummaryWriter

from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.files import write_atomically
from data_pipelines.utils.seeds import MAX_SEED
from evals import fid, likelihood
from evals.evaluation import evaluate
from evals.features import extractors
from evals.features.base import Extractor
from evals.inputs.documents import Documents
from evals.reporting.results import SettingsError, claim_folder
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint
from jpeglm_jax.training.checkpoint import Checkpoints

FOLDER = "evaluations"
_TENSORBOARD = "tensorboard"
_POLL_SECONDS = 10.0


def follow(
    workdir: epath.PathLike,
    references: str,
    *,
    extractor: Extractor,
    num: int = 1000,
    num_eval: int = 0,
    seed: int = 0,
    patience: float = 0.0,
    wait: Callable[[float], None] = time.sleep,
) -> dict[int, dict[str, Any]]:
    """Evaluates the checkpoints of a run until the last one.

    Args:
      workdir: of the run.
      references: real images, see `evaluation.evaluate`.
      extractor: of the features.
      num: number of images to generate with each checkpoint.
      num_eval: number of documents of the eval split to score, sampled at random; 0: all.
      seed: of generation and of the random subset.
      patience: max seconds to wait for a new checkpoint.
      wait: waits for a number of seconds.

    Returns:
      The line of metrics.jsonl of every evaluated checkpoint, by step.

    Raises:
      CheckpointError: `workdir` is not that of a run.
      SettingsError: the run was followed with other settings before, or another run was; or the
        folder of the results holds other files.
      ValueError (of several kinds): inputs that cannot be used.
    """
    out = epath.Path(workdir) / FOLDER
    settings = {
        "references": references,
        "features": extractor.fingerprint,
        "num": num,
        "num_eval": num_eval,
        "seed": seed,
    }
    if not checkpoint.folder(workdir).is_dir():
        raise checkpoint.CheckpointError(
            f"{workdir} has no folder checkpoints; expected the workdir of a training run"
        )
    claim_folder(out, settings)
    lines = _finished(out)
    _require_same_weights(workdir, out, lines)
    if not (out / _TENSORBOARD).exists() or not lines:
        _write_scalars(out, lines)
    skipped: set[int] = set()
    waited = 0.0
    while True:
        new = [step for step in _steps(workdir) if step not in lines.keys() | skipped]
        for step in new:
            try:
                line = _evaluate(workdir, step, references, out, extractor, num, num_eval, seed)
            except (ValueError, OSError, KeyError):
                if step in _steps(workdir):
                    raise
                skipped.add(step)
                print(f"step {step} skipped: the run deleted its checkpoint", flush=True)
                continue
            lines[step] = line
            _write(out, lines)
            _write_scalars(out, {step: line})
            print(json.dumps(line, allow_nan=False), flush=True)
        if lines and max(lines) >= _last_step(workdir):
            return lines
        if new:
            waited = 0.0
            continue
        if waited >= patience:
            return lines
        wait(min(_POLL_SECONDS, patience - waited))
        waited += _POLL_SECONDS


def _finished(out: epath.Path) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl of an earlier process, by step."""
    path = out / "metrics.jsonl"
    if not path.is_file():
        return {}
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return {line["step"]: line for line in lines}


def _require_same_weights(
    workdir: epath.PathLike, out: epath.Path, lines: Mapping[int, Mapping[str, Any]]
) -> None:
    """Raises SettingsError if the lines are of a run that was in this workdir before.

    Loads the newest checkpoint that has a line and still exists: another run differs in all.
    """
    steps = [step for step in _steps(workdir) if step in lines]
    if not steps:
        return
    ours, theirs = checkpoint.load(workdir, steps[-1]).weights_digest, lines[steps[-1]]["weights"]
    if ours != theirs:
        raise SettingsError(
            f"{out} holds evaluations of another run: the weights of step {steps[-1]} are {ours} "
            f"here and {theirs} there; remove {out}"
        )


def _write(out: epath.Path, lines: dict[int, dict[str, Any]]) -> None:
    text = "".join(json.dumps(lines[step], allow_nan=False) + "\n" for step in sorted(lines))
    write_atomically(out / "metrics.jsonl", text.encode())


def _write_scalars(out: epath.Path, lines: Mapping[int, Mapping[str, Any]]) -> None:
    """Writes the numbers of lines for TensorBoard: eval/NAME, or NAME where it has a group."""
    if not lines:
        return
    with SummaryWriter(str(out / _TENSORBOARD)) as events:
        for step in sorted(lines):
            for name, value in lines[step].items():
                if name != "step" and isinstance(value, (int, float)):
                    events.add_scalar(name if "/" in name else f"eval/{name}", value, step)


def _steps(workdir: epath.PathLike) -> list[int]:
    """Steps of the existing checkpoints."""
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.steps()


def _last_step(workdir: epath.PathLike) -> int:
    """The last step of the run, by its latest configuration."""
    path = epath.Path(workdir) / "config.json"
    if path.is_file():
        return int(json.loads(path.read_text())["steps"])
    return int(checkpoint.describe(workdir).config.steps)


def _evaluate(
    workdir: epath.PathLike,
    step: int,
    references: str,
    out: epath.Path,
    extractor: Extractor,
    num: int,
    num_eval: int,
    seed: int,
) -> dict[str, Any]:
    """Evaluates one checkpoint; returns its line of metrics.jsonl."""
    folder = out / f"step_{step:08d}"
    generated, representation = fid.sample(str(workdir), folder, num, seed, step)
    evaluated = sorted(out.glob("step_*/metrics.json"))  # the first has features of the references
    first = evaluated[0].parent if evaluated and evaluated[0].parent != folder else None
    coded = first / "references_coded" if first else None
    metrics = evaluate(
        generated,
        str(first / "references") if first else references,
        folder,
        extractor=extractor,
        representation=representation,
        references_coded=str(coded) if coded is not None and coded.is_dir() else None,
        command=fid.sampled_command(
            workdir, references, folder, extractor, num=num, seed=seed, step=step
        ),
    )
    model = checkpoint.load(workdir, step)
    images = likelihood.eval_split(model, workdir)
    documents = Documents(images, model.representation, num_eval, seed)
    bits = likelihood.likelihood(model, documents, folder)
    values = {name: value for name, value in metrics.items() if isinstance(value, float)}
    values |= {name: value for name, value in bits.items() if isinstance(value, float)}
    codec = metrics["codec"]
    values["samples/valid"] = codec["strictly_valid"] / codec["requested"]
    return {"step": step, "weights": model.weights_digest, **values}


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    if values.patience < 0:
        raise ValueError(f"patience is {values.patience}; expected 0 or more seconds")
    extractor = extractors.from_flags(values, values.references)
    if extractor is None:
        raise ValueError("no extractor: give --weights=FILE, or --features")
    lines = follow(
        values.workdir,
        values.references,
        extractor=extractor,
        num=values.num,
        num_eval=values.num_eval,
        seed=values.seed,
        patience=values.patience,
    )
    print(f"{len(lines)} checkpoints evaluated; see {epath.Path(values.workdir) / FOLDER}")


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
    flags.DEFINE_string("references", None, "Real images to compare with.", required=True)
    flags.DEFINE_integer("num", 1000, "Images to generate with each checkpoint.", lower_bound=1)
    flags.DEFINE_integer(
        "num_eval", 0, "Documents of the eval split to score; 0: all.", lower_bound=0
    )
    flags.DEFINE_integer("seed", 0, "Random seed.", 0, MAX_SEED)
    flags.DEFINE_float("patience", 6 * 3600.0, "Max seconds to wait for a new checkpoint.")
    extractors.define_flags()


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError)
