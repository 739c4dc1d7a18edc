"""Options of a generation job -> labels, sampling parameters, constraint and prompts.

Sampling options default to the values of the run's configuration. The command `generate` and
the evaluations resolve their flags here before they start a job.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.loading.joined_shards import JoinedShards, shard_folders
from data_pipelines.representations.base import Representation
from data_pipelines.sources import open_source
from data_pipelines.utils.compare import differences
from jpeglm_jax.generation import prompts
from jpeglm_jax.generation.constraint import Constraint, make_constraint
from jpeglm_jax.generation.prompts import Medium
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.trained import TrainedModel

BALANCED = "balanced"  # equally many documents of each label


def resolve_labels(
    model: TrainedModel, num: int, label: int | None = None, labels: str | None = None
) -> list[int]:
    """The label of each document.

    Args:
      model: the model that is sampled from.
      num: number of documents; without effect for a file of labels.
      label: of all documents; None: all labels in turn.
      labels: "balanced", for equally many of each label, or a file with a line LABEL or
        LABEL,COUNT for each group of documents, in their order.

    Raises ValueError for a label that the model does not know, a number of documents that cannot
    be balanced, and an unreadable file.
    """
    representation = model.representation
    if labels is not None and labels != BALANCED:
        return read_labels(representation, labels)
    if label is not None:
        return [check_label(representation, label)] * num
    if labels == BALANCED:
        count = representation.num_labels
        if not count or num % count:
            raise ValueError(
                f"labels is balanced and num is {num}; expected a multiple of the model's "
                f"{count} labels"
            )
    return prompts.cycle_labels(representation, num)


def read_labels(representation: Representation, path: str) -> list[int]:
    """The labels of a file, see `resolve_labels`. Raises ValueError, which names the line."""
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(f"labels is {path!r}; expected {BALANCED}, or a file of labels")
    found: list[int] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) > 2 or not all(cell.isdecimal() for cell in cells):
            raise ValueError(
                f"{path}, line {number} is {line!r}; expected LABEL or LABEL,COUNT in whole numbers"
            )
        try:
            label = check_label(representation, int(cells[0]))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        found += [label] * (int(cells[1]) if len(cells) == 2 else 1)
    if not found:
        raise ValueError(f"{path} holds no label; expected lines LABEL or LABEL,COUNT")
    return found


def check_label(representation: Representation, label: int) -> int:
    """The label itself. Raises ValueError for one that the representation does not know."""
    count = representation.num_labels
    if not 0 <= label < count:
        raise ValueError(
            f"label is {label}; this model "
            + (f"knows 0 to {count - 1}" if count else "was trained without labels")
        )
    return label


def resolve_sampling_params(
    model: TrainedModel, options: Mapping[str, float | None]
) -> SamplingParams:
    """The sampling parameters of `options`; for a value of None, that of the run's configuration.

    Raises ValueError for a value out of range, and for guidance of a model without labels.
    """
    changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    sampling_params = dataclasses.replace(
        SamplingParams.from_config(model.config.sample), **changes
    )
    unconditional = model.representation.num_labels and model.config.data.label_dropout
    if sampling_params.guidance != 1 and not unconditional:
        raise ValueError(
            f"guidance is {sampling_params.guidance}; it needs a model trained with labels and "
            "label dropout (data.conditional, data.label_dropout)"
        )
    return sampling_params


def resolve_constraint(model: TrainedModel, size: str | None) -> Constraint:
    """The constraint that makes every document valid.

    Args:
      model: the model that is sampled from.
      size: "WIDTHxHEIGHT" in pixels, where images differ in size; else None.

    Raises ValueError for a size that is malformed, missing or not the representation's, and for a
    representation that has no constraint.
    """
    return make_constraint(model.representation, None if size is None else parse_size(size))


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "WIDTHxHEIGHT". Raises ValueError for another text, or a side of 0."""
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"size is {text!r}; expected WIDTHxHEIGHT in pixels, like 640x480")
    return int(width), int(height)


def check_ratio(ratio: float) -> float:
    """The prefix ratio itself. Raises ValueError for one outside 0 to 1."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"prefix_ratio is {ratio}; expected 0 to 1")
    return ratio


def resolve_prefix_ratio(representation: Representation, ratio: float, frames: int | None) -> float:
    """The part of each medium that becomes the prompt: `frames` of a clip if given, else `ratio`.

    Raises ValueError for frames of a model of images, or more frames than a clip has.
    """
    if frames is None:
        return ratio
    if representation.frames == 1:
        raise ValueError("prefix_frames is for models of clips; give --prefix_ratio")
    if not 0 <= frames <= representation.frames:
        raise ValueError(f"prefix_frames is {frames}; expected 0 to {representation.frames}")
    return frames / representation.frames


def open_media(representation: Representation, where: str) -> Iterator[Medium]:
    """Real media to complete.

    Args:
      representation: of the model.
      where: a folder, a source such as tar:GLOB, or shards:FOLDER[,FOLDER] for an eval split.

    Raises ValueError for shards of another representation.
    """
    if not where.startswith("shards:"):
        source = where if ":" in where else f"folder:{where}"
        return prompts.encode_source(representation, open_source(source, representation.kind))
    joined = JoinedShards(shard_folders(where.removeprefix("shards:")), "eval")
    found = differences(representation.to_config(), joined.representation.to_config())
    if found:
        raise ValueError(f"{where} has another representation: {'; '.join(found)}")
    return itertools.chain.from_iterable(map(prompts.read_shards, joined.parts))
