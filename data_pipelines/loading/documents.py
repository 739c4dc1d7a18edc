"""The interface of document sets that the loader reads, and several sets joined to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data_pipelines.packing.plan import Plan
from data_pipelines.representations.base import Representation


class Documents(Protocol):
    """A set of documents with known lengths, such as `shards.reader.Shards`.

    Attributes:
      lengths: uint32 [N], tokens of each document without start and end token.
      codec_bytes: uint32 [N], bytes that the codec writes for each; 0 if there is no codec.
      labels: int32 [N], -1 for none.
    """

    lengths: np.ndarray
    codec_bytes: np.ndarray
    labels: np.ndarray

    @property
    def representation(self) -> Representation:
        """The representation of all documents."""
        ...

    @property
    def data_hash(self) -> str:
        """A hash over all documents, in order."""
        ...

    def read(self, documents: Sequence[int]) -> list[np.ndarray]:
        """Tokens of documents, integer [length] each; a damaged document may be empty."""
        ...


class JoinedDocuments:
    """Several sets of documents, numbered one after the other.

    Attributes:
      parts: the sets.
      representation: the representation of all sets.
    """

    def __init__(self, parts: Sequence[Documents]):
        """Joins sets. Raises ValueError if there are none, or if they cannot share rows."""
        if not parts:
            raise ValueError("There are no documents to load; expected at least one set.")
        self.parts = tuple(parts)
        self.representation = self.parts[0].representation
        self._check_representations()
        self._check_labels()
        self._bounds = np.cumsum([0] + [len(part.lengths) for part in self.parts])
        tokens = [self.representation.label_token(k) for k in range(self.representation.num_labels)]
        # The last entry is for label -1.
        self._start_tokens = np.array([*tokens, self.representation.bos], np.int32)

    def require_planned_by(self, plan: Plan) -> None:
        """Raises ValueError unless the plan was made for the lengths of these documents."""
        planned = plan.lengths
        if self._bounds[-1] == len(planned) and all(
            np.array_equal(part.lengths + 1, planned[begin:end])
            for part, begin, end in zip(
                self.parts, self._bounds[:-1], self._bounds[1:], strict=True
            )
        ):
            return
        tokens = sum(int(part.lengths.sum(dtype=np.int64)) for part in self.parts)
        raise ValueError(
            f"The plan was made for {len(planned):,} documents of "
            f"{int(planned.sum(dtype=np.int64)):,} positions in total; expected "
            f"{self._bounds[-1]:,} documents of {tokens + self._bounds[-1]:,} positions. Plan the "
            "lengths of these documents plus 1 each, in the same order."
        )

    def read(self, documents: np.ndarray) -> list[np.ndarray | None]:
        """Reads the tokens of documents by ascending indices; None for a damaged document.

        Raises:
          ValueError: a document has another length than stated by its set.
        """
        tokens: list[np.ndarray | None] = []
        for part, numbers in self._split(documents):
            found = part.read(numbers.tolist())
            for number, read, expected in zip(numbers, found, part.lengths[numbers], strict=True):
                if read.size not in (0, expected):
                    raise ValueError(
                        f"Document {number} has {read.size:,} tokens, expected the {expected:,} "
                        "from which rows were planned. Prepare the shards again."
                    )
                tokens.append(read if read.size == expected else None)
        return tokens

    def codec_bytes(self, documents: np.ndarray) -> np.ndarray:
        """Bytes that the codec writes for documents, given by ascending numbers, integer [n]."""
        parts = [part.codec_bytes[numbers] for part, numbers in self._split(documents)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def start_tokens(self, documents: np.ndarray) -> np.ndarray:
        """The token of each document's label, or `bos`; documents by ascending indices."""
        if not self.representation.num_labels:
            return np.full(documents.size, self.representation.bos)
        labels = [part.labels[numbers] for part, numbers in self._split(documents)]
        return self._start_tokens[np.concatenate([np.zeros(0, np.int64), *labels])]

    def _split(self, documents: np.ndarray) -> list[tuple[Documents, np.ndarray]]:
        """Splits ascending indices into (set, indices in that set)."""
        cuts = np.searchsorted(documents, self._bounds)
        return [
            (part, documents[cuts[i] : cuts[i + 1]] - self._bounds[i])
            for i, part in enumerate(self.parts)
            if cuts[i] < cuts[i + 1]
        ]

    def _check_representations(self) -> None:
        ours = self.representation
        for part in self.parts[1:]:
            theirs = part.representation
            if theirs.fingerprint != ours.fingerprint:
                raise ValueError(
                    "Documents of different representations cannot share rows: "
                    f"{ours.fingerprint} {ours.to_config()} and "
                    f"{theirs.fingerprint} {theirs.to_config()}. Prepare them with the same "
                    "settings."
                )

    def _check_labels(self) -> None:
        known = self.representation.num_labels
        for part in self.parts:
            highest = int(part.labels.max()) if len(part.labels) else -1
            if known and highest >= known:
                raise ValueError(
                    f"Documents have labels up to {highest}; expected fewer than the {known} label "
                    f"tokens of the representation. Prepare them with num_labels of at least "
                    f"{highest + 1}."
                )
