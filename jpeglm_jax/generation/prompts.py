"""What a generation job is asked for: documents of a label, or given beginnings of real media."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.loading.joined_shards import JoinedShards
from data_pipelines.preparation.process import clip_key
from data_pipelines.representations.base import Representation
from data_pipelines.shards.reader import Shards
from data_pipelines.sources import Source, SourceError
from jpeglm_jax.generation.constraint import Constraint

_WINDOW = 64  # documents that are read from shards together


@dataclasses.dataclass(frozen=True)
class Request:
    """One document to draw.

    Attributes:
      prompt: int32 [n], a start token and the tokens that are given.
      label: of the start token; -1 for none.
      source: key of the medium whose beginning is given; empty for none.
    """

    prompt: np.ndarray
    label: int = -1
    source: str = ""


class Medium(NamedTuple):
    """A real medium: its tokens, or why there are none."""

    key: str
    tokens: np.ndarray | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Originals:
    """Real media and their beginnings.

    Attributes:
      requests: `num` of each medium, one medium after the other.
      tokens: of each whole medium, by its key.
      set_aside: (key, reason) of those that cannot be used.
    """

    requests: list[Request]
    tokens: dict[str, np.ndarray]
    set_aside: list[tuple[str, str]]


def start_token(representation: Representation, label: int) -> int:
    """Of documents with this label, -1 for none. Raises ValueError for one without a token."""
    return representation.bos if label < 0 else representation.label_token(label)


def of_labels(representation: Representation, labels: Sequence[int]) -> list[Request]:
    """A whole document for each label; -1 is none. Raises ValueError for one without a token."""
    return [
        Request(np.array([start_token(representation, label)], np.int32), label) for label in labels
    ]


def every_label(representation: Representation, num: int) -> list[int]:
    """`num` labels, each in turn; -1 (none) throughout if there are no labels."""
    count = representation.num_labels
    return [n % count if count else -1 for n in range(num)]


def encoded(representation: Representation, source: Source) -> Iterator[Medium]:
    """The media of a source, of any size and mode, fitted to the representation as in training."""
    for item in source.items():
        key = item.key
        try:
            for place, medium in enumerate(representation.open(source.read(item.locator))):
                key = item.key if representation.kind == "image" else clip_key(item.key, place)
                yield Medium(key, representation.encode(medium))
        except (ValueError, OSError) as error:
            yield Medium(key, None, str(error))
    for reject in source.rejects:
        yield Medium(reject.key, None, reject.reason)


def stored(shards: Shards) -> Iterator[Medium]:
    """The media of prepared shards, without their augmented copies."""
    originals = [n for n in range(len(shards)) if not shards.copy(n)]
    for begin in range(0, len(originals), _WINDOW):
        numbers = originals[begin : begin + _WINDOW]
        for number, tokens in zip(numbers, shards.read(numbers), strict=True):
            yield Medium(shards.key(number), tokens)


def of_beginnings(
    representation: Representation,
    media: Iterable[Medium],
    ratio: float,
    *,
    num: int = 1,
    label: int = -1,
    most: int = 0,
    length: int,
) -> Originals:
    """Beginnings of real media, to be completed: the protocol of JPEG-LM (arXiv 2408.08459).

    Args:
      representation: of the model.
      media: see `encoded` and `stored`.
      ratio: the part of each that is given, see `Representation.prompt`.
      num: documents to draw of each.
      label: of all of them.
      most: media to use; 0: all.
      length: places of a document; a medium whose beginning leaves no room is set aside.

    Raises:
      ValueError: a ratio or a label out of range; not one medium can be used.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"prefix_ratio is {ratio}; expected 0 to 1")
    start = start_token(representation, label)
    result = Originals([], {}, [])
    for medium in media:
        if most and len(result.tokens) == most:
            break
        given, reason = _beginning(representation, medium, ratio, length)
        if reason or medium.tokens is None:
            result.set_aside.append((medium.key, reason))
            continue
        prompt = np.concatenate([[start], given]).astype(np.int32)
        result.tokens[medium.key] = medium.tokens
        result.requests.extend([Request(prompt, label, medium.key)] * num)
    if not result.requests:
        key, reason = result.set_aside[0] if result.set_aside else ("", "there is nothing")
        raise SourceError(f"nothing can be completed: {key} {reason}".strip())
    return result


def ending_in_time(found: Originals, constraint: Constraint, length: int) -> Originals:
    """The same, less the media after whose beginning no valid document ends in `length` places.

    Raises ValueError: a beginning that no valid document has; not one medium is left.
    """
    prompts = [request.prompt for request in found.requests]
    needed = np.asarray(constraint.needed(constraint.start(prompts)))
    places = np.array([len(prompt) for prompt in prompts]) + needed
    late = {
        request.source: f"the shortest valid document after its beginning takes {taken} of "
        f"{length} places"
        for request, taken in zip(found.requests, places.tolist(), strict=True)
        if taken > length
    }
    if len(late) == len(found.tokens):
        key, reason = next(iter(late.items()))
        raise ValueError(f"nothing can be completed: {key}: {reason}; sample without --constrain")
    return Originals(
        [request for request in found.requests if request.source not in late],
        {key: tokens for key, tokens in found.tokens.items() if key not in late},
        [*found.set_aside, *late.items()],
    )


def of_run(sample: ConfigDict, heldout: JoinedShards, length: int) -> list[Request]:
    """What a run shows of itself: `sample.num` documents, a label each, or `sample.prefix_ratio`
    of as many held-out ones given.

    Raises ValueError: see `of_beginnings`.
    """
    representation = heldout.representation
    if not sample.prefix_ratio:
        return of_labels(representation, every_label(representation, sample.num))
    media = itertools.chain.from_iterable(map(stored, heldout.parts))
    return of_beginnings(
        representation, media, sample.prefix_ratio, most=sample.num, length=length
    ).requests


def _beginning(
    representation: Representation, medium: Medium, ratio: float, length: int
) -> tuple[np.ndarray, str]:
    """(what is given of a medium, why it cannot be used)."""
    nothing = np.zeros(0, np.uint16)
    if medium.tokens is None:
        return nothing, medium.reason
    try:
        given = representation.prompt(medium.tokens, ratio)
    except ValueError as error:
        return nothing, str(error)
    if len(given) + 1 >= length:
        return nothing, f"its beginning takes {len(given) + 1} of {length} places"
    return given, ""
