"""Example: python -m jpeglm_jax.generate --workdir=runs/jpeg-digits --num=64 --out=samples

Samples documents from a trained model and writes them as files (clips also as MP4), with a grid of
them (grid.png) and a line about each (manifest.jsonl). A label-conditional model takes its labels
in turn, or one, --label. With --prompts, real media are completed from their beginnings
instead, --num documents of each:

  python -m jpeglm_jax.generate --workdir=RUN --prompts=PHOTOS --prefix_ratio=0.5 --out=OUT

With --constrain every image and every clip is strictly valid. The same command again resumes a
stopped job. Sampling flags default to the values of the run (config.sample).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from data_pipelines.utils import command
from data_pipelines.utils.seeds import check_seed
from jpeglm_jax import api
from jpeglm_jax.generation import options, prompts
from jpeglm_jax.generation.constraint import Constraint
from jpeglm_jax.generation.job import generate
from jpeglm_jax.generation.pictures import GRID
from jpeglm_jax.generation.prompts import PromptSet
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.training import checkpoint


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    values = flags.FLAGS
    sampling_options = check_flags(values)
    model = api.load(values.workdir, values.step).trained
    sampling_params = options.resolve_sampling_params(model, sampling_options)
    constraint = options.resolve_constraint(model, values.size) if values.constrain else None
    work = _prompts(model, values, constraint)
    try:
        counts = generate(
            model,
            values.out,
            work.requests,
            sampling_params,
            seed=values.seed,
            batch_size=min(values.batch_size, len(work.requests)),
            constraint=constraint,
            size=values.size,
            originals=work.originals,
            reencode_damaged=values.reencode_damaged,
            task=values.task,
            num_tasks=values.num_tasks,
        )
    except KeyboardInterrupt:
        raise SystemExit(
            f"interrupted: finished documents are in {values.out}; the same command resumes"
        ) from None
    if counts is None:
        print(f"task {values.task} is done; others have not finished")
        return
    print(
        f"{counts.requested} documents from step {model.step}: {counts.valid} strictly valid, "
        f"{counts.written} written to {values.out}; all in one picture: "
        f"{epath.Path(values.out) / GRID}"
    )


def check_flags(values: flags.FlagValues) -> dict[str, float | None]:
    """Checks the flags before anything is loaded; returns the sampling options.

    Raises ValueError for a number out of range, or a flag that has no effect with the others.
    """
    counts = {"num": values.num, "batch_size": values.batch_size, "num_tasks": values.num_tasks}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; expected 1 or more")
    if values.max_prompts < 0:
        raise ValueError(f"max_prompts is {values.max_prompts}; expected 1 or more, or 0 for all")
    if not 0 <= values.task < values.num_tasks:
        raise ValueError(f"task is {values.task}; expected 0 to {values.num_tasks - 1}")
    check_seed(values.seed)
    options.check_ratio(values.prefix_ratio)
    if values.size is not None:
        options.parse_size(values.size)
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    found = {name: values[name].value for name in names}
    SamplingParams(**{name: value for name, value in found.items() if value is not None})

    given, refuse = command.given, command.refuse_without_effect
    if values.labels is not None:
        refuse(given(values, "label"), "together with --labels; give one of them")
        if values.labels != options.BALANCED:
            refuse(given(values, "num"), "with a file of --labels, which has the counts")
        if values.prompts:
            refuse(["--labels"], "with --prompts; give --label")
    if not values.constrain:
        refuse(given(values, "size"), "without --constrain")
    if not values.prompts:
        names = ["prefix_ratio", "prefix_frames", "max_prompts"]
        refuse(given(values, *names), "without --prompts")
    if values.prefix_frames is not None:
        refuse(given(values, "prefix_ratio"), "together with --prefix_frames; give one of them")
    if values.constrain:
        refuse(given(values, "reencode_damaged"), "with --constrain, which gives no damaged clip")
    if values.temperature == 0:
        refuse(
            given(values, "top_k", "top_p", "min_p"),
            "at --temperature=0, which takes the most likely token",
        )
    return found


def _prompts(model: TrainedModel, values: Any, constraint: Constraint | None) -> PromptSet:
    """The requests that the flags ask for."""
    representation, seq_len = model.representation, model.config.seq_len
    if not values.prompts:
        labels = options.resolve_labels(model, values.num, values.label, values.labels)
        return PromptSet(prompts.label_requests(representation, labels), {}, [])
    label = -1 if values.label is None else options.check_label(representation, values.label)
    found = prompts.completion_requests(
        representation,
        options.open_media(representation, values.prompts),
        options.resolve_prefix_ratio(representation, values.prefix_ratio, values.prefix_frames),
        num=values.num,
        label=label,
        max_media=values.max_prompts,
        seq_len=seq_len,
    )
    if constraint is not None:
        found = prompts.reject_unfinishable(found, constraint, seq_len)
    for key, reason in found.rejected:
        print(f"rejected: {key}: {reason}")
    return found


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    flags.DEFINE_integer("step", None, "Which checkpoint; default the newest.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_integer("num", 64, "How many documents; with --prompts, of each medium.")
    flags.DEFINE_integer("label", None, "Label of all documents; default all labels in turn.")
    flags.DEFINE_string(
        "labels",
        None,
        "balanced: equally many documents of each label; or a file of lines LABEL or LABEL,COUNT.",
    )
    flags.DEFINE_integer("seed", 0, "Random seed.")
    flags.DEFINE_float("temperature", None, "Divides the logits; 0: the most likely token.")
    flags.DEFINE_integer("top_k", None, "Sample among the k most likely tokens; 0: all.")
    flags.DEFINE_float("top_p", None, "Sample among the most likely tokens up to this probability.")
    flags.DEFINE_float("min_p", None, "Min probability, relative to that of the most likely token.")
    flags.DEFINE_float("guidance", None, "Scale of classifier-free guidance; 1: none.")
    flags.DEFINE_string(
        "prompts",
        None,
        "Media to complete: a folder, a source such as tar:GLOB, or shards:DIR for an eval split.",
    )
    flags.DEFINE_float("prefix_ratio", 0.5, "Part of each medium that becomes the prompt.")
    flags.DEFINE_integer("prefix_frames", None, "The same in frames of a clip.")
    flags.DEFINE_integer("max_prompts", 0, "Max number of media to complete; 0: all.")
    flags.DEFINE_bool("constrain", False, "Sample valid documents only.")
    flags.DEFINE_string("size", None, "With --constrain, WIDTHxHEIGHT where images differ in size.")
    flags.DEFINE_bool(
        "reencode_damaged",
        False,
        "Encode the frames of damaged clips again too, as NUMBER.reencoded.mp4 for players.",
    )
    flags.DEFINE_integer("batch_size", 64, "Documents sampled together.")
    flags.DEFINE_integer("task", 0, "Which share of the documents, 0 to num_tasks - 1.")
    flags.DEFINE_integer("num_tasks", 1, "Processes that share the job.")


if __name__ == "__main__":
    _define_flags()
    command.run(main)
