"""Example: python -m evals.follow --workdir=runs/mine --references=folder:PHOTOS --weights=...

Scores every checkpoint of a run as it is written: distances of drawn images from real ones, and
the bits of held-out documents. Beside the run's own files it writes evaluations/step_N/ (what
evals.fid and evals.likelihood write) and evaluations/metrics.jsonl, a line a checkpoint.

It ends when the checkpoint of the run's last step has been scored, or when --patience seconds have
passed without a new one (0: as soon as there is none). Started again it goes on where it was: what
has been scored stays. A checkpoint that the run deleted before its turn came is passed over and
named.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from etils import epath

from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.files import write_atomically
from evals import fid
from evals import likelihood as bits
from evals.evaluation import evaluate
from evals.features import extractors
from evals.features.features import Extractor
from evals.inputs.documents import Documents
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint
from jpeglm_jax.training.checkpoint import Checkpoints

FOLDER = "evaluations"
_POLL = 10.0  # seconds between two looks


def follow(
    workdir: epath.PathLike,
    references: str,
    *,
    extractor: Extractor,
    num: int = 1000,
    num_held_out: int = 0,
    seed: int = 0,
    patience: float = 0.0,
    wait: Callable[[float], None] = time.sleep,
) -> dict[int, dict[str, Any]]:
    """Scores the checkpoints of a run until it is done.

    Args:
      workdir: of the run.
      references: real images, see `evaluation.evaluate`.
      extractor: what to look with.
      num: documents to draw from each checkpoint.
      num_held_out: held-out documents whose bits are counted, at random; 0: all.
      seed: decides what is drawn.
      patience: seconds without a new checkpoint after which it ends.
      wait: waits so many seconds.

    Returns:
      The line of metrics.jsonl of every checkpoint that was scored, by step.

    Raises:
      CheckpointError: no run, or it was followed with other settings before.
      ValueError (of several kinds): inputs that cannot be used.
    """
    out = epath.Path(workdir) / FOLDER
    settings = {
        "references": references,
        "features": extractor.fingerprint,
        "num": num,
        "num_held_out": num_held_out,
        "seed": seed,
    }
    if not checkpoint.folder(workdir).is_dir():
        raise checkpoint.CheckpointError(
            f"{workdir} has no folder checkpoints; expected the workdir of a training run"
        )
    _claim(out, settings)
    lines = _scored(out)
    passed_over: dict[int, str] = {}
    waited = 0.0
    while True:
        new = [step for step in _steps(workdir) if step not in lines.keys() | passed_over.keys()]
        for step in new:
            try:
                line = _score(workdir, step, references, out, extractor, num, num_held_out, seed)
            except (ValueError, OSError, KeyError):
                if step in _steps(workdir):
                    raise
                passed_over[step] = "the run deleted it before it was scored"
                print(f"step {step}: {passed_over[step]}", flush=True)
                continue
            lines[step] = line
            _write(out, lines)
            print(json.dumps(line), flush=True)
        if lines and max(lines) >= _last_step(workdir):
            return lines
        if new:
            waited = 0.0
            continue
        if waited >= patience:
            return lines
        wait(min(_POLL, patience - waited))
        waited += _POLL


def _claim(out: epath.Path, settings: dict[str, Any]) -> None:
    path = out / "settings.json"
    if path.is_file():
        checkpoint.refuse_difference(settings, json.loads(path.read_text()), "job", str(out))
        return
    out.mkdir(parents=True, exist_ok=True)
    bits.write_json(path, settings)


def _scored(out: epath.Path) -> dict[int, dict[str, Any]]:
    """What an earlier process has scored."""
    path = out / "metrics.jsonl"
    if not path.is_file():
        return {}
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return {line["step"]: line for line in lines}


def _write(out: epath.Path, lines: dict[int, dict[str, Any]]) -> None:
    text = "".join(json.dumps(lines[step]) + "\n" for step in sorted(lines))
    write_atomically(out / "metrics.jsonl", text.encode())


def _steps(workdir: epath.PathLike) -> list[int]:
    """Steps of the checkpoints that are there now."""
    return Checkpoints(workdir).steps()


def _last_step(workdir: epath.PathLike) -> int:
    """How long the run is, by the configuration it was last started with."""
    path = epath.Path(workdir) / "config.json"
    if path.is_file():
        return int(json.loads(path.read_text())["steps"])
    return int(checkpoint.describe(workdir).config.steps)


def _score(
    workdir: epath.PathLike,
    step: int,
    references: str,
    out: epath.Path,
    extractor: Extractor,
    num: int,
    num_held_out: int,
    seed: int,
) -> dict[str, Any]:
    """Draws, compares, counts bits; returns the line of metrics.jsonl."""
    place = out / f"step_{step:08d}"
    generated, representation = fid.sample(str(workdir), place, num, seed, step)
    seen = sorted(out.glob("step_*/metrics.json"))  # looked at the references already
    first = seen[0].parent if seen and seen[0].parent != place else None
    coded = first / "references_coded" if first else None
    metrics = evaluate(
        generated,
        str(first / "references") if first else references,
        place,
        extractor=extractor,
        representation=representation,
        references_coded=str(coded) if coded is not None and coded.is_dir() else None,
    )
    model = checkpoint.load(workdir, step)
    where = bits.held_out(model, workdir)
    documents = Documents(where, model.representation, num_held_out, seed)
    likelihood = bits.likelihood(model, documents, place)
    values = {name: value for name, value in metrics.items() if isinstance(value, float)}
    values |= {name: value for name, value in likelihood.items() if isinstance(value, float)}
    codec = metrics["codec"]
    values["samples/valid"] = codec["strictly_valid"] / codec["requested"]
    return {"step": step, **values}


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    if values.patience < 0:
        raise ValueError(f"patience is {values.patience}; expected 0 or more seconds")
    extractor = extractors.from_flags(values, values.references)
    if extractor is None:
        raise ValueError("there is nothing to look with: give --weights=FILE, or --features")
    lines = follow(
        values.workdir,
        values.references,
        extractor=extractor,
        num=values.num,
        num_held_out=values.num_held_out,
        seed=values.seed,
        patience=values.patience,
    )
    print(f"{len(lines)} checkpoints scored; see {epath.Path(values.workdir) / FOLDER}")


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Workdir of the run.", required=True)
    flags.DEFINE_string("references", None, "Real images to compare with.", required=True)
    flags.DEFINE_integer("num", 1000, "Images to draw from each checkpoint.", lower_bound=1)
    flags.DEFINE_integer("num_held_out", 0, "Held-out documents to count bits of; 0: all.")
    flags.DEFINE_integer("seed", 0, "Decides what is drawn.")
    flags.DEFINE_float("patience", 6 * 3600.0, "Seconds to wait for a new checkpoint, at most.")
    extractors.define_flags()


if __name__ == "__main__":
    _define_flags()
    command.run(main)
