"""What a generation job is asked for: documents of a label, or given beginnings of real media."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.representations.base import Representation
from data_pipelines.sources import Source, SourceError


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


def of_beginnings(
    representation: Representation,
    source: Source,
    ratio: float,
    *,
    num: int = 1,
    label: int = -1,
    most: int = 0,
    length: int,
) -> Originals:
    """Beginnings of real media, to be completed: the protocol of JPEG-LM (arXiv 2408.08459).

    Media of any size and mode are fitted to the representation as in training.

    Args:
      representation: of the model.
      source: where the media are.
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
    for item in source.items():
        if most and len(result.tokens) == most:
            break
        try:
            for place, medium in enumerate(representation.open(source.read(item.locator))):
                key = item.key if representation.medium == "image" else f"{item.key}#{place}"
                tokens = representation.encode(medium)
                given = representation.prompt(tokens, ratio)
                if len(given) + 1 >= length:
                    reason = f"its beginning takes {len(given) + 1} of {length} places"
                    result.set_aside.append((key, reason))
                    continue
                prompt = np.concatenate([[start], given]).astype(np.int32)
                result.tokens[key] = tokens
                result.requests.extend([Request(prompt, label, key)] * num)
                if len(result.tokens) == most:
                    break
        except (ValueError, OSError) as error:
            result.set_aside.append((item.key, str(error)))
    result.set_aside.extend((reject.key, reject.reason) for reject in source.rejects)
    if not result.requests:
        key, reason = result.set_aside[0] if result.set_aside else ("", "it is empty")
        raise SourceError(f"nothing in {source.spec} can be completed: {key} {reason}".strip())
    return result
