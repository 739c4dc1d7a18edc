"""Example: python -m jpeglm_jax.generate --workdir=runs/jpeg-digits --num=64 --out=samples

Draws documents from a trained model and writes them as files (clips also as MP4), with a grid of
them (grid.png) and a line about each (manifest.jsonl). A label-conditional model takes its labels
in turn, or the one given by --label. With --prompts, beginnings of real media are completed
instead, --num of each:

  python -m jpeglm_jax.generate --workdir=RUN --prompts=PHOTOS --prefix_ratio=0.5 --out=OUT

With --constrain every image is strictly valid, and of a clip all but its macroblocks. A job that
was stopped goes on when the same command is given again. Sampling flags that are left out are the
run's own (config.sample).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags
from etils import epath

from data_pipelines.representations.avc.representation import AvcRepresentation
from data_pipelines.representations.base import Representation
from data_pipelines.shards.reader import Shards
from data_pipelines.sources import open_source
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.files import write_atomically
from jpeglm_jax.generation import constraint, pictures, prompts
from jpeglm_jax.generation.constraint import Constraint
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.manifest import Manifest
from jpeglm_jax.generation.prompts import Medium, Originals, Request
from jpeglm_jax.generation.sampling import Sample, SamplingParams
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint
from jpeglm_jax.training.checkpoint import TrainedModel


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of the documents of a whole job.

    Attributes:
      requested: all of them.
      valid: strictly valid ones.
      written: those that have a file at all.
    """

    requested: int
    valid: int
    written: int


def generate(
    model: TrainedModel,
    out: epath.PathLike,
    requests: Sequence[Request],
    sampling_params: SamplingParams,
    *,
    seed: int = 0,
    batch_size: int = 64,
    constraint: Constraint | None = None,
    originals: Mapping[str, np.ndarray] | None = None,
    task: int = 0,
    num_tasks: int = 1,
) -> Counts | None:
    """Draws a document for each request and writes it; what has been drawn before is kept.

    Args:
      model: what to draw from.
      out: folder for the files, manifest.jsonl and pictures, see `pictures.draw`.
      requests: what to draw.
      sampling_params: how tokens are drawn.
      seed: with its number it decides what a document is.
      batch_size: documents drawn together.
      constraint: which tokens may come next.
      originals: tokens of the media whose beginnings are completed, by their key.
      task, num_tasks: which share of the documents to draw, where several processes draw them.

    Returns:
      Counts of the whole job; None while other tasks have not finished.

    Raises:
      JobError: `out` holds the output of another job.
      WriteError: the disk is full.
      ValueError: a request that cannot be drawn.
    """
    out = epath.Path(out)
    representation = model.representation
    manifest = Manifest(
        out,
        _job(model, sampling_params, seed, batch_size, constraint),
        len(requests),
        task,
        num_tasks,
    )
    missing = manifest.missing
    if missing:
        representation.save(out)
        engine = Engine(
            model.spec,
            model.mesh,
            sampling_params,
            batch_size=batch_size,
            length=model.config.seq_len,
            seed=seed,
            eos=representation.eos,
            bos=representation.bos,
            constraint=constraint,
        )
        drawn = engine(model.params, [requests[n].prompt for n in missing], missing)
        for sample in tqdm.tqdm(drawn, total=len(missing), unit=representation.medium):
            manifest.add(_write(representation, out, sample, requests[sample.number], seed))
    lines = manifest.finish()
    if lines is None:
        return None
    pictures.draw(representation, out, lines, requests, originals or {})
    return Counts(
        len(lines), sum(line["valid"] for line in lines), sum(bool(line["file"]) for line in lines)
    )


def _job(
    model: TrainedModel,
    sampling_params: SamplingParams,
    seed: int,
    batch_size: int,
    constraint: Constraint | None,
) -> dict[str, Any]:
    """What decides the output of a job, besides its requests."""
    return {
        "step": model.step,
        "representation": model.representation.fingerprint,
        "seed": seed,
        "batch_size": batch_size,
        "constrained": constraint is not None,
        **dataclasses.asdict(sampling_params),
    }


def _write(
    representation: Representation, out: epath.Path, sample: Sample, request: Request, seed: int
) -> dict[str, Any]:
    """Writes the file of a document, and returns its line for the manifest."""
    judged = representation.validate(sample.tokens)
    name, reason = f"{sample.number:06d}{representation.suffix}", judged.error
    try:
        data = representation.to_bytes(sample.tokens)
    except ValueError as error:  # tokens that stand for no byte: there is no file to write
        name, reason = "", str(error)
    else:
        write_atomically(out / name, data)
    return {
        "number": sample.number,
        "file": name,
        "seed": seed,
        "label": request.label,
        "source": request.source,
        "prompt_tokens": len(request.prompt) - 1,
        "tokens": sample.tokens.size,
        "complete": sample.complete,
        "log_likelihood": sample.log_likelihood,
        "valid": judged.valid,
        "error": reason,
    }


# The command line


def chosen_labels(model: TrainedModel, num: int, label: int | None) -> list[int]:
    """The label of each of `num` documents: the one asked for, or each in turn.

    Raises ValueError for a label that the model does not know.
    """
    if label is None:
        return prompts.every_label(model.representation, num)
    return [_known(model.representation, label)] * num


def _known(representation: Representation, label: int) -> int:
    known = representation.num_labels
    if not 0 <= label < known:
        raise ValueError(
            f"label is {label}; this model "
            + (f"knows 0 to {known - 1}" if known else "was trained without labels")
        )
    return label


def chosen_sampling_params(
    model: TrainedModel, asked: Mapping[str, float | None]
) -> SamplingParams:
    """How to draw: as the run's configuration says, where None is given.

    Raises ValueError for a value out of range, and for guidance of a model without labels.
    """
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    sampling_params = dataclasses.replace(SamplingParams.of(model.config.sample), **changes)
    if sampling_params.guidance != 1 and not (
        model.representation.num_labels and _drops_labels(model)
    ):
        raise ValueError(
            f"guidance is {sampling_params.guidance}; it needs a model trained with labels of which some "
            "were left out (data.conditional, data.label_dropout)"
        )
    return sampling_params


def _drops_labels(model: TrainedModel) -> bool:
    return bool(model.config.data.label_dropout)


def _completions(model: TrainedModel, values: Any, allowed: Constraint | None) -> Originals:
    label = -1 if values.label is None else _known(model.representation, values.label)
    ratio = values.prefix_ratio
    if values.prefix_frames is not None:
        ratio = _part_of_clip(model.representation, values.prefix_frames)
    found = prompts.of_beginnings(
        model.representation,
        _media(model.representation, values.prompts),
        ratio,
        num=values.num,
        label=label,
        most=values.max_prompts,
        length=model.config.seq_len,
    )
    if allowed is not None:
        found = prompts.ending_in_time(found, allowed, model.config.seq_len)
    for key, reason in found.set_aside:
        print(f"set aside: {key}: {reason}")
    return found


def _media(representation: Representation, where: str) -> Iterator[Medium]:
    if where.startswith("shards:"):
        _, folder, split = (*where.split(":", 1), "eval")
        shards = Shards(folder, split)
        ours, theirs = representation.to_config(), shards.representation.to_config()
        checkpoint.refuse_difference(ours, theirs, "representation", "the folder of shards")
        return prompts.stored(shards)
    spec = where if ":" in where else f"folder:{where}"
    return prompts.encoded(representation, open_source(spec, representation.kind))


def _part_of_clip(representation: Representation, frames: int) -> float:
    if not isinstance(representation, AvcRepresentation):
        raise ValueError("prefix_frames is for models of clips; give --prefix_ratio")
    if not 0 <= frames <= representation.frames:
        raise ValueError(f"prefix_frames is {frames}; expected 0 to {representation.frames}")
    return frames / representation.frames


def chosen_constraint(model: TrainedModel, size: str | None) -> Constraint:
    """What makes every document valid.

    Args:
      model: what is drawn from.
      size: "WIDTHxHEIGHT" in pixels, where images have their own; else None.

    Raises ValueError for a size that is none, missing or another than the representation's, and for
    a representation that has no constraint.
    """
    if size is None:
        return constraint.constraint(model.representation)
    width, x, height = size.partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size is {size!r}; expected WIDTHxHEIGHT in pixels, like 640x480")
    return constraint.constraint(model.representation, (int(width), int(height)))


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    values = flags.FLAGS
    if values.num < 1:
        raise ValueError(f"num is {values.num}; expected 1 or more")
    if not 0 <= values.task < values.num_tasks:
        raise ValueError(f"task is {values.task}; expected 0 to {values.num_tasks - 1}")
    sharding.split_cpu(num_cpus())
    model = checkpoint.load(values.workdir, values.step)
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    sampling_params = chosen_sampling_params(model, {name: values[name].value for name in names})
    allowed = chosen_constraint(model, values.size) if values.constrain else None
    originals: dict[str, np.ndarray] = {}
    if values.prompts:
        found = _completions(model, values, allowed)
        requests, originals = found.requests, found.tokens
    else:
        labels = chosen_labels(model, values.num, values.label)
        requests = prompts.of_labels(model.representation, labels)
    try:
        counts = generate(
            model,
            values.out,
            requests,
            sampling_params,
            seed=values.seed,
            batch_size=min(values.batch_size, len(requests)),
            constraint=allowed,
            originals=originals,
            task=values.task,
            num_tasks=values.num_tasks,
        )
    except KeyboardInterrupt:
        raise SystemExit(
            f"stopped; what was drawn is in {values.out}, and the same command goes on with it"
        ) from None
    if counts is None:
        print(f"task {values.task} is done; others are not yet")
        return
    print(
        f"{counts.requested} documents from step {model.step}: {counts.valid} strictly valid, "
        f"{counts.written} written to {values.out}, together in "
        f"{epath.Path(values.out) / 'grid.png'}"
    )


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
    flags.DEFINE_integer("step", None, "Which checkpoint; default the newest.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_integer("num", 64, "How many documents; with --prompts, of each medium.")
    flags.DEFINE_integer("label", None, "Of all documents; default each label in turn.")
    flags.DEFINE_integer("seed", 0, "Decides what is drawn.")
    flags.DEFINE_float("temperature", None, "Divides the logits; 0: the likeliest token.")
    flags.DEFINE_integer("top_k", None, "Draw among the k likeliest tokens; 0: all.")
    flags.DEFINE_float("top_p", None, "Draw among the likeliest of this probability; 1: all.")
    flags.DEFINE_float("min_p", None, "Draw among those this part as likely as the likeliest.")
    flags.DEFINE_float("guidance", None, "Classifier-free guidance of labels; 1: none.")
    flags.DEFINE_string(
        "prompts",
        None,
        "Complete these: a folder, tar:GLOB and so on, or the held-out documents in shards:DIR.",
    )
    flags.DEFINE_float("prefix_ratio", 0.5, "Part of each medium that is given.")
    flags.DEFINE_integer("prefix_frames", None, "Frames of each clip that are given, instead.")
    flags.DEFINE_integer("max_prompts", 0, "Media to complete, the first ones; 0: all.")
    flags.DEFINE_bool("constrain", False, "Draw only what is valid; of clips, to slice headers.")
    flags.DEFINE_string("size", None, "With --constrain, WIDTHxHEIGHT where each has its own.")
    flags.DEFINE_integer("batch_size", 64, "Documents drawn together.")
    flags.DEFINE_integer("task", 0, "Which share of the documents, 0 to num_tasks - 1.")
    flags.DEFINE_integer("num_tasks", 1, "Processes that draw, one share each.")


if __name__ == "__main__":
    _define_flags()
    command.run(main)
