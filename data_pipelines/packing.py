"""The global plan of rows: which documents, or parts of them, each row of an epoch holds.

A plan is made from the lengths of all documents alone. It knows nothing of hosts, batches or
devices: row i of the endless run of epochs is a pure function of the lengths, the options and i,
and is computed when asked for. So a position in the data is one integer.

Lengths are counted in places of a row. A document of n tokens takes n + 1, because it is framed
by a start token (in the inputs) and an end token (in the targets).
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from data_pipelines import bins
from data_pipelines.permutation import hash64, permute

MODES = ("pack", "concat")
TOO_LONG = ("drop", "cut")

# A change of anything that decides what a row holds must change this number, or the one in bins.
_VERSION = 1

# Streams of random numbers that share a seed.
_ROWS, _DOCUMENTS, _PIECES = 1, 2, 3


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

    row_length: int
    fingerprint: str

    @property
    @abc.abstractmethod
    def lengths(self) -> np.ndarray:
        """Places of each document that the plan was made for, uint32 [N]."""

    @abc.abstractmethod
    def rows(self, indices: ArrayLike) -> Rows:
        """The rows with these numbers, in any order. Raises IndexError for negative ones."""

    @abc.abstractmethod
    def epochs(self, row: int) -> tuple[float, ...]:
        """How often each source has been gone through before this row."""

    def row(self, index: int) -> np.ndarray:
        """One row, int64 [k, 3]: document, start, length; see `Rows`."""
        return self.rows([index])[0]


def plan(
    lengths: ArrayLike,
    *,
    row_length: int,
    mode: str = "pack",
    seed: int = 0,
    too_long: str = "drop",
) -> EpochPlan:
    """Plans the rows of all epochs.

    Args:
      lengths: integers [N], places of each document: its tokens and one more.
      row_length: places of a row.
      mode: "pack" puts whole documents into rows, few places left empty, anew each epoch.
        "concat" lays them end to end, in an order of its own each epoch, and cuts every
        `row_length` places; the last row of an epoch is padded (Han et al., arXiv 2408.08459,
        concatenate so, but do not say what they do at the end).
      seed: 0 <= seed < 2**63; decides every order.
      too_long: what "pack" does with documents longer than a row: "drop" leaves them out, "cut"
        keeps what fits, which then has no end token. "concat" needs no such rule.

    Returns:
      The plan. It takes 8 bytes a document ("concat": 4), and is the same on every platform.

    Raises:
      ValueError: options out of range, a length below 1, or nothing to plan.
    """
    _check_options(row_length, mode, seed, too_long)
    lengths = _checked_lengths(lengths)
    if mode == "concat":
        return ConcatPlan(lengths, row_length, seed)
    return PackPlan(lengths, row_length, seed, too_long)


class EpochPlan(Plan):
    """A plan whose every epoch has the same number of rows, and each document once.

    Attributes:
      rows_per_epoch: number of rows.
      stats: what becomes of the documents.
    """

    rows_per_epoch: int
    stats: Stats

    def __init__(self, lengths: np.ndarray, row_length: int, seed: int, options: dict[str, object]):
        self._lengths = lengths
        self.row_length = row_length
        self._seed = seed
        header = {"version": [_VERSION, bins.ALGORITHM_VERSION], "row_length": row_length}
        header.update(options, seed=seed)
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(lengths, "<u4").data)
        self.fingerprint = digest.hexdigest()[:16]

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

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


class PackPlan(EpochPlan):
    """Whole documents in rows.

    The epoch's rows are fixed multisets of lengths (`bins.Templates`). Each epoch permutes the
    rows, the documents among the slots that they fit, and the pieces within each row.
    """

    def __init__(self, lengths: np.ndarray, row_length: int, seed: int, too_long: str):
        super().__init__(lengths, row_length, seed, {"mode": "pack", "too_long": too_long})
        excess = lengths > row_length
        dropped = int(excess.sum()) if too_long == "drop" else 0
        if dropped == lengths.size:
            raise ValueError(
                f"All {dropped:,} documents are longer than a row of {row_length:,} places (the "
                f"shortest takes {lengths.min():,}). Make rows longer, or cut documents."
            )
        # Documents by length, equal ones by number; dropped ones at the end and out of reach.
        self._by_length = _stable_order(lengths)
        histogram = _histogram(lengths, row_length, dropped)
        templates = bins.pack_histogram(histogram, row_length)
        self._lay_out(templates, histogram)
        places = int(histogram @ np.arange(row_length + 1))
        self.rows_per_epoch = templates.rows
        self.stats = Stats(
            documents=lengths.size,
            dropped=dropped,
            shortened=int(excess.sum()) - dropped,
            split=0,
            rows=templates.rows,
            places=places,
            padding=templates.rows * row_length - places,
        )

    def _lay_out(self, templates: bins.Templates, histogram: np.ndarray) -> None:
        """Numbers the slots of all rows: each group of lengths has slots 0, 1, ... of its own."""
        self._row_ends = np.cumsum(templates.copies)
        self._sizes = templates.sizes
        self._first_slot = np.cumsum(templates.sizes) - templates.sizes
        group_of_length = _exchangeable(templates, histogram)
        self._slot_group = group_of_length[templates.lengths]
        self._slot_rank = _rank_in_group(
            self._slot_group, np.repeat(templates.copies, templates.sizes)
        )
        present = np.flatnonzero(histogram)
        self._group_sizes = np.bincount(
            group_of_length[present], weights=histogram[present]
        ).astype(np.int64)
        self._group_starts = np.cumsum(self._group_sizes) - self._group_sizes

    def _rows(self, epoch: np.ndarray, place: np.ndarray) -> Rows:
        row = permute(place, self.rows_per_epoch, hash64(self._seed, _ROWS, epoch))
        template = np.searchsorted(self._row_ends, row, side="right")
        sizes = self._sizes[template]
        # How many rows of the same template come after this one: another number for each copy.
        copy = self._row_ends[template] - 1 - row
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        owner = np.repeat(np.arange(row.size), sizes)
        slot = np.arange(offsets[-1]) + (self._first_slot[template] - offsets[:-1])[owner]
        piece_epoch = epoch[owner]

        group = self._slot_group[slot]
        rank = permute(
            self._slot_rank[slot] + copy[owner],
            self._group_sizes[group],
            hash64(self._seed, _DOCUMENTS, piece_epoch, group),
        )
        document = self._by_length[self._group_starts[group] + rank].astype(np.int64)
        shuffled = np.lexsort((hash64(self._seed, _PIECES, piece_epoch, document), owner))
        document = document[shuffled]
        length = np.minimum(self._lengths[document], self.row_length).astype(np.int64)
        return Rows(np.stack([document, np.zeros_like(document), length], axis=1), offsets)


class ConcatPlan(EpochPlan):
    """Documents end to end, cut every row length.

    Where a row begins depends on all documents before it in the epoch's order. Only every 32nd
    beginning is kept, and only for the last two epochs asked for.
    """

    _BLOCK = 32
    _EPOCHS_KEPT = 2

    def __init__(self, lengths: np.ndarray, row_length: int, seed: int):
        super().__init__(lengths, row_length, seed, {"mode": "concat"})
        places = int(lengths.sum(dtype=np.int64))
        self.rows_per_epoch = -(-places // row_length)
        self._places = places
        self._lock = threading.Lock()
        self._block_starts: dict[int, np.ndarray] = {}
        self.stats = Stats(
            documents=lengths.size,
            dropped=0,
            shortened=0,
            split=self.split_documents(0),
            rows=self.rows_per_epoch,
            places=places,
            padding=self.rows_per_epoch * row_length - places,
        )

    def split_documents(self, epoch: int) -> int:
        """How many documents of this epoch lie in more than one row."""
        split = 0
        for start, ends in self._scan(epoch):
            starts = np.concatenate([[start], ends[:-1]])
            split += int(np.sum(starts // self.row_length != (ends - 1) // self.row_length))
        return split

    def _document(self, epoch: int, place: np.ndarray) -> np.ndarray:
        return permute(place, self._lengths.size, hash64(self._seed, _DOCUMENTS, epoch))

    def _scan(self, epoch: int) -> Iterator[tuple[int, np.ndarray]]:
        """Goes through an epoch; yields (places before this part, ends of its documents)."""
        start = 0
        part = 2048 * self._BLOCK
        for first in range(0, self._lengths.size, part):
            place = np.arange(first, min(first + part, self._lengths.size))
            lengths = self._lengths[self._document(epoch, place)]
            ends = start + np.cumsum(lengths, dtype=np.int64)
            yield start, ends
            start = int(ends[-1])

    def _starts(self, epoch: int) -> np.ndarray:
        """Where every 32nd document begins in an epoch, int64."""
        with self._lock:
            if epoch not in self._block_starts:
                starts = [np.zeros(1, np.int64)]
                starts += [ends[self._BLOCK - 1 :: self._BLOCK] for _, ends in self._scan(epoch)]
                self._block_starts[epoch] = np.concatenate(starts)
                while len(self._block_starts) > self._EPOCHS_KEPT:
                    self._block_starts.pop(next(iter(self._block_starts)))
            return self._block_starts[epoch]

    def __getstate__(self) -> dict[str, object]:
        """Worker processes get all but the lock."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def _rows(self, epoch: np.ndarray, place: np.ndarray) -> Rows:
        pieces = [np.zeros((0, 3), np.int64)] * place.size
        for one in np.unique(epoch).tolist():
            asked = np.flatnonzero(epoch == one)
            for j, row in zip(asked.tolist(), self._rows_of_epoch(one, place[asked]), strict=True):
                pieces[j] = row
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in pieces], dtype=np.int64)])
        return Rows(np.concatenate([np.zeros((0, 3), np.int64), *pieces]), offsets)

    def _rows_of_epoch(self, epoch: int, place: np.ndarray) -> list[np.ndarray]:
        row_starts = place * self.row_length
        row_ends = np.minimum(row_starts + self.row_length, self._places)
        document, starts, ends = self._documents_around(epoch, row_starts, row_ends)
        first = np.searchsorted(ends, row_starts, side="right")
        last = np.searchsorted(starts, row_ends, side="left")
        rows = []
        for row_start, row_end, i, j in zip(row_starts, row_ends, first, last, strict=True):
            begin = np.maximum(starts[i:j], row_start)
            length = np.minimum(ends[i:j], row_end) - begin
            rows.append(np.stack([document[i:j], begin - starts[i:j], length], axis=1))
        return rows

    def _documents_around(
        self, epoch: int, row_starts: np.ndarray, row_ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All documents of the blocks that the rows touch: which, their starts, their ends."""
        block_starts = self._starts(epoch)
        first = np.searchsorted(block_starts, row_starts, side="right") - 1
        last = np.searchsorted(block_starts, row_ends, side="left")
        blocks = np.unique(_ranges(first, last))
        place = (blocks[:, None] * self._BLOCK + np.arange(self._BLOCK)).reshape(-1)
        place = place[place < self._lengths.size]
        document = self._document(epoch, place)
        lengths = self._lengths[document].astype(np.int64)
        ends = np.cumsum(lengths)
        # Sums that run over the gaps between blocks are set right at the first of each block.
        block = place // self._BLOCK
        heads = np.flatnonzero(place % self._BLOCK == 0)
        sums_before = (ends - lengths)[heads]
        ends += np.repeat(block_starts[block[heads]] - sums_before, np.diff([*heads, place.size]))
        return document, ends - lengths, ends


def _check_options(row_length: int, mode: str, seed: int, too_long: str) -> None:
    if mode not in MODES:
        raise ValueError(f"Packing mode {mode!r} is not known; choose one of {', '.join(MODES)}.")
    if too_long not in TOO_LONG:
        raise ValueError(
            f"The rule {too_long!r} for documents that are too long is not known; choose one of "
            f"{', '.join(TOO_LONG)}."
        )
    if row_length < 1:
        raise ValueError(f"A row must have at least 1 place, not {row_length}.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"The seed must be at least 0 and below 2**63, not {seed}.")


def _checked_lengths(lengths: ArrayLike) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
        raise ValueError(
            f"Lengths must be integers [N], not {lengths.dtype} of shape {lengths.shape}."
        )
    if not lengths.size:
        raise ValueError("There are no documents to plan rows for.")
    if lengths.min() < 1 or lengths.max() >= 2**32:
        raise ValueError(
            f"Lengths must be between 1 and 2**32 - 1 places, but they go from {lengths.min()} to "
            f"{lengths.max()}. A document of n tokens takes n + 1."
        )
    if lengths.size >= 2**32:
        raise ValueError(f"{lengths.size:,} documents are more than a plan can number (2**32).")
    return lengths.astype(np.uint32)


def _stable_order(lengths: np.ndarray) -> np.ndarray:
    """Documents by length, equal ones by number, uint32 [N]."""
    # Numbers of 16 bits are sorted by radix, several times faster.
    keys = lengths.astype(np.uint16) if lengths.max() < 2**16 else lengths
    return np.argsort(keys, kind="stable").astype(np.uint32)


def _histogram(lengths: np.ndarray, row_length: int, dropped: int) -> np.ndarray:
    """How often each length is packed, int64 [row_length + 1]; longer ones are cut or dropped."""
    histogram = np.bincount(np.minimum(lengths, row_length), minlength=row_length + 1)
    histogram[row_length] -= dropped
    return histogram


def _exchangeable(templates: bins.Templates, histogram: np.ndarray) -> np.ndarray:
    """Groups lengths whose documents may take each other's slots; int64 by length, -1 if unused.

    What a row leaves empty is shared out among its slots, so that a slot has room for somewhat
    more than its length. Neighbouring lengths form a group as long as the longest of them fits
    the tightest slot of all. In small sets, where hardly two lengths are equal, this is what
    gives documents other company in each epoch: of 1,000 documents of the paper's lengths, 45 %
    of the rows, where equal lengths alone would give 16 %.
    """
    used = np.add.reduceat(templates.lengths, np.cumsum(templates.sizes) - templates.sizes)
    spare = (histogram.size - 1 - used) // templates.sizes
    tightest = np.full(histogram.size, histogram.size, np.int64)
    room = templates.lengths + np.repeat(spare, templates.sizes)
    np.minimum.at(tightest, templates.lengths, room)

    group_of_length = np.full(histogram.size, -1, np.int64)
    group, limit = -1, 0
    for length in np.flatnonzero(histogram).tolist():
        if length > limit:
            group, limit = group + 1, int(tightest[length])
        limit = min(limit, int(tightest[length]))
        group_of_length[length] = group
    return group_of_length


def _rank_in_group(group: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Numbers the slots of each group, int64 [E]: entry e stands for copies[e] of them."""
    order = np.argsort(group, kind="stable")
    before = np.cumsum(copies[order]) - copies[order]
    heads = np.searchsorted(group[order], group[order], side="left")
    rank = np.empty_like(before)
    rank[order] = before - before[heads]
    return rank


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The integers of all ranges [first, last), one range after the other."""
    sizes = last - first
    skipped = np.repeat(first - (np.cumsum(sizes) - sizes), sizes)
    return np.arange(sizes.sum()) + skipped
