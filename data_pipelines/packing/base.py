"""What a plan is: rows by number, each a pure function of lengths, options and number.

Lengths are counted in places of a row. A document of n tokens takes n + 1, because it is framed
by a start token (in the inputs) and an end token (in the targets).
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from data_pipelines.packing import bins

# A change of anything that decides what a row holds must change this number, or the one in bins.
VERSION = 1

# Streams of random numbers that share a seed.
ROWS, DOCUMENTS, PIECES, LABELS = 1, 2, 3, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a plan.

    Attributes:
      pieces: int64 [P, 3], each (document, start, length) in places: the part of the framed
        document that begins at its place `start`. The pieces of a row lie one after the other.
      offsets: int64 [R + 1]; row j is `pieces[offsets[j]:offsets[j + 1]]`.
    """

    pieces: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """The pieces of one row, int64 [k, 3]."""
        return self.pieces[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a plan does with its documents in one epoch; all lengths in places.

    Attributes:
      documents: how many were offered.
      dropped: how many are left out because they are longer than a row.
      shortened: how many lose their end because they are longer than a row.
      split: how many lie in more than one row (`concat`; of the first epoch, others differ
        slightly).
      rows: how many rows hold them.
      places: how many places of the rows are used.
      padding: how many are not.
    """

    documents: int
    dropped: int
    shortened: int
    split: int
    rows: int
    places: int
    padding: int

    @property
    def fill(self) -> float:
        """The part of all places that is used, 0 to 1."""
        return self.places / (self.places + self.padding)

    def __str__(self) -> str:
        text = f"{self.documents:,} documents in {self.rows:,} rows an epoch, fill {self.fill:.2%}"
        if self.dropped:
            text += f", {self.dropped:,} documents longer than a row dropped"
        if self.shortened:
            text += f", {self.shortened:,} documents longer than a row cut to its length"
        if self.split:
            text += f", {self.split:,} documents split between rows"
        return text


class Plan(abc.ABC):
    """Rows of documents, numbered from 0 without end: after an epoch the next one follows."""

    seq_len: int
    fingerprint: str

    @property
    @abc.abstractmethod
    def lengths(self) -> np.ndarray:
        """Places of each document that the plan was made for, uint32 [N]."""

    @property
    @abc.abstractmethod
    def max_documents(self) -> int:
        """No row of any epoch holds pieces of more documents."""

    @abc.abstractmethod
    def rows(self, indices: ArrayLike) -> Rows:
        """The rows with these numbers, in any order. Raises IndexError for negative ones."""

    @abc.abstractmethod
    def epochs(self, row: int) -> tuple[float, ...]:
        """How often each source has been gone through before this row."""

    def row(self, index: int) -> np.ndarray:
        """One row, int64 [k, 3]: document, start, length; see `Rows`."""
        return self.rows([index])[0]


class EpochPlan(Plan):
    """A plan whose every epoch has the same number of rows, and each document once.

    Attributes:
      rows_per_epoch: number of rows.
      stats: what becomes of the documents.
    """

    rows_per_epoch: int
    stats: Stats

    def __init__(self, lengths: np.ndarray, seq_len: int, seed: int, options: dict[str, object]):
        self._lengths = lengths
        self.seq_len = seq_len
        self._seed = seed
        header = {"version": [VERSION, bins.ALGORITHM_VERSION], "seq_len": seq_len}
        header.update(options, seed=seed)
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(lengths, "<u4").data)
        self.fingerprint = digest.hexdigest()[:16]

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    def __str__(self) -> str:
        return str(self.stats)

    def epochs(self, row: int) -> tuple[float, ...]:
        return (row / self.rows_per_epoch,)

    def rows(self, indices: ArrayLike) -> Rows:
        numbers = np.asarray(indices, np.int64).reshape(-1)
        if numbers.size and numbers.min() < 0:
            raise IndexError(f"Row {numbers.min()} was asked for; rows are numbered from 0.")
        return self._rows(*np.divmod(numbers, self.rows_per_epoch))

    @abc.abstractmethod
    def _rows(self, epoch: np.ndarray, place: np.ndarray) -> Rows:
        """Rows by epoch and place in the epoch, both int64 [R]."""
