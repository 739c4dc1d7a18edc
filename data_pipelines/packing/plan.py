"""Plans of rows: a row by its index, as a pure function of lengths, options and index.

Lengths are counted in positions of a row. A document of n tokens takes n + 1 positions: its inputs
are the start token and the tokens, its targets the tokens and the end token.
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

# Increase this, or the version in bins, with every change that affects the contents of rows.
VERSION = 1

# Independent streams of random numbers from one seed.
ROWS, DOCUMENTS, PIECES, LABELS = 1, 2, 3, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a plan.

    Attributes:
      pieces: int64 [P, 3], each (document, start, length): `length` positions of the framed
        document from its position `start` on. The pieces of a row follow each other.
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
    """Counts of one epoch of a plan.

    Attributes:
      documents: documents given to the plan.
      dropped: documents dropped because they are longer than a row.
      shortened: documents truncated because they are longer than a row.
      split: documents in more than one row (`concat`; of the first epoch, others differ slightly).
      rows: rows per epoch.
      positions: positions of the rows that documents take.
      padding: the other positions.
    """

    documents: int
    dropped: int
    shortened: int
    split: int
    rows: int
    positions: int
    padding: int

    @property
    def fill(self) -> float:
        """The fraction of all positions that documents take, 0 to 1."""
        return self.positions / (self.positions + self.padding)

    def __str__(self) -> str:
        text = f"{self.documents:,} documents in {self.rows:,} rows per epoch, fill {self.fill:.2%}"
        if self.dropped:
            text += f", {self.dropped:,} documents longer than a row dropped"
        if self.shortened:
            text += f", {self.shortened:,} documents longer than a row truncated"
        if self.split:
            text += f", {self.split:,} documents split between rows"
        return text


class Plan(abc.ABC):
    """An endless sequence of rows, numbered from 0; each epoch follows the one before."""

    seq_len: int
    fingerprint: str

    @property
    @abc.abstractmethod
    def lengths(self) -> np.ndarray:
        """Positions of each document of the plan, uint32 [N]."""

    @property
    @abc.abstractmethod
    def max_documents(self) -> int:
        """No row of any epoch holds pieces of more documents."""

    @abc.abstractmethod
    def rows(self, indices: ArrayLike) -> Rows:
        """The rows with these indices, in any order. Raises IndexError for negative ones."""

    @abc.abstractmethod
    def epochs(self, row: int) -> tuple[float, ...]:
        """Epochs of each source that are complete before this row, as fractions."""

    def row(self, index: int) -> np.ndarray:
        """One row, int64 [k, 3]: document, start, length; see `Rows`."""
        return self.rows([index])[0]


class EpochPlan(Plan):
    """A plan in which each epoch has the same number of rows and each document once.

    Attributes:
      rows_per_epoch: number of rows.
      stats: counts of one epoch.
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
            raise IndexError(f"There is no row {numbers.min()}; rows are numbered from 0.")
        return self._rows(*np.divmod(numbers, self.rows_per_epoch))

    @abc.abstractmethod
    def _rows(self, epoch: np.ndarray, index: np.ndarray) -> Rows:
        """Rows by epoch and index in the epoch, both int64 [R]."""
