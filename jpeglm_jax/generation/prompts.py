"""Requests of a generation job: documents with a label, or completions of real media.

The command `generate`, the samples of a training run and the evaluations make requests here; the
engine continues the prompt of each.
"""

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

_READ_BATCH = 64  # documents read from shards together


@dataclasses.dataclass(frozen=True)
class Request:
    """One document to sample.

    Attributes:
      prompt: int32 [n], a start token and the tokens that follow it in the prompt.
      label: the label of the start token; -1 for none.
      source: key of the medium that is completed; empty for none.
      ratio: the part of that medium that was asked for as the prompt.
      share: the part of that medium that the prompt is: it is cut after whole units.
    """

    prompt: np.ndarray
    label: int = -1
    source: str = ""
    ratio: float = 0.0
    share: float = 0.0


class Medium(NamedTuple):
    """A real medium: its tokens, or the reason why it was rejected."""

    key: str
    tokens: np.ndarray | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Requests that complete real media.

    Attributes:
      requests: `num` of each medium, one medium after the other.
      originals: tokens of each whole medium, by its key.
      rejected: (key, reason) of each medium that cannot be used.
    """

    requests: list[Request]
    originals: dict[str, np.ndarray]
    rejected: list[tuple[str, str]]


def start_token(representation: Representation, label: int) -> int:
    """The start token of a label, BOS for -1. Raises ValueError for a label without a token."""
    return representation.bos if label < 0 else representation.label_token(label)


def label_requests(representation: Representation, labels: Sequence[int]) -> list[Request]:
    """A whole document for each label; -1 is none. Raises ValueError for one without a token."""
    return [
        Request(np.array([start_token(representation, label)], np.int32), label) for label in labels
    ]


def cycle_labels(representation: Representation, num: int) -> list[int]:
    """`num` labels: 0, 1, ... and from 0 again; all -1 if the representation has no labels."""
    count = representation.num_labels
    return [n % count if count else -1 for n in range(num)]


def encode_source(representation: Representation, source: Source) -> Iterator[Medium]:
    """The media of a source, of any size and mode, fitted to the representation as in training."""
    for item in source.items():
        key = item.key
        try:
            for index, medium in enumerate(representation.open(source.read(item.locator))):
                key = item.key if representation.kind == "image" else clip_key(item.key, index)
                yield Medium(key, representation.encode(medium))
        except (ValueError, OSError) as error:
            yield Medium(key, None, str(error))
    for reject in source.rejects:
        yield Medium(reject.key, None, reject.reason)


def read_shards(shards: Shards) -> Iterator[Medium]:
    """The media of prepared shards, without their augmented copies."""
    originals = [n for n in range(len(shards)) if not shards.copy(n)]
    for begin in range(0, len(originals), _READ_BATCH):
        numbers = originals[begin : begin + _READ_BATCH]
        for number, tokens in zip(numbers, shards.read(numbers), strict=True):
            yield Medium(shards.key(number), tokens)


def completion_requests(
    representation: Representation,
    media: Iterable[Medium],
    ratio: float,
    *,
    num: int = 1,
    label: int = -1,
    max_media: int = 0,
    seq_len: int,
) -> PromptSet:
    """Requests that complete real media: the protocol of JPEG-LM (arXiv 2408.08459).

    Args:
      representation: of the model.
      media: see `encode_source` and `read_shards`.
      ratio: the part of each medium that becomes the prompt, see `Representation.prompt`.
      num: documents to sample for each medium.
      label: of all of them.
      max_media: how many media to use; 0: all.
      seq_len: sequence length, the limit of a document; a medium whose prompt fills it is rejected.

    Raises:
      ValueError: a ratio or a label out of range, or all media were rejected.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"prefix_ratio is {ratio}; expected 0 to 1")
    start = start_token(representation, label)
    result = PromptSet([], {}, [])
    for medium in media:
        if max_media and len(result.originals) == max_media:
            break
        prefix, reason = _prefix(representation, medium, ratio, seq_len)
        if reason or medium.tokens is None:
            result.rejected.append((medium.key, reason))
            continue
        prompt = np.concatenate([[start], prefix]).astype(np.int32)
        share = representation.prompt_share(medium.tokens, ratio)
        result.originals[medium.key] = medium.tokens
        result.requests.extend([Request(prompt, label, medium.key, ratio, share)] * num)
    if not result.requests:
        key, reason = result.rejected[0] if result.rejected else ("", "there is no medium")
        raise SourceError(f"no medium can be completed: {key} {reason}".strip())
    return result


def reject_unfinishable(prompts: PromptSet, constraint: Constraint, seq_len: int) -> PromptSet:
    """The same without the media whose prompt no valid document within `seq_len` begins with.

    Raises ValueError: no valid document of any length begins with a prompt, or no medium is left.
    """
    requests = prompts.requests
    state = constraint.start([request.prompt for request in requests])
    lengths = np.array([len(request.prompt) for request in requests])
    min_lengths = lengths + np.asarray(constraint.min_tokens_to_end(state))
    rejected = {
        request.source: f"the shortest valid document that begins with its prompt takes {length} "
        f"of {seq_len} positions"
        for request, length in zip(requests, min_lengths.tolist(), strict=True)
        if length > seq_len
    }
    if len(rejected) == len(prompts.originals):
        key, reason = next(iter(rejected.items()))
        raise ValueError(f"no medium can be completed: {key}: {reason}; omit --constrain")
    return PromptSet(
        [request for request in requests if request.source not in rejected],
        {key: tokens for key, tokens in prompts.originals.items() if key not in rejected},
        [*prompts.rejected, *rejected.items()],
    )


def sample_requests(config: ConfigDict, documents: JoinedShards, seq_len: int) -> list[Request]:
    """The requests of a training run's samples, `config.num` documents.

    Args:
      config: `config.sample`. Without `prefix_ratio` documents get the labels in turn; with it,
        documents of the eval split are completed.
      documents: of the eval split.
      seq_len: sequence length, the limit of a document.

    Raises:
      ValueError: see `completion_requests`.
    """
    representation = documents.representation
    if not config.prefix_ratio:
        return label_requests(representation, cycle_labels(representation, config.num))
    media = itertools.chain.from_iterable(map(read_shards, documents.parts))
    return completion_requests(
        representation, media, config.prefix_ratio, max_media=config.num, seq_len=seq_len
    ).requests


def _prefix(
    representation: Representation, medium: Medium, ratio: float, seq_len: int
) -> tuple[np.ndarray, str]:
    """(the tokens of a medium that become the prompt, why it is rejected)."""
    nothing = np.zeros(0, np.int32)
    if medium.tokens is None:
        return nothing, medium.reason
    try:
        prefix = representation.prompt(medium.tokens, ratio)
    except ValueError as error:
        return nothing, str(error)
    if len(prefix) + 1 >= seq_len:
        return nothing, f"its prompt takes {len(prefix) + 1} of {seq_len} positions"
    return prefix, ""
