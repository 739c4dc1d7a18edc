"""Documents end to end, cut into rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from data_pipelines.packing.base import DOCUMENTS, EpochPlan, Rows, Stats
from data_pipelines.packing.permutation import hash64, permute


class ConcatPlan(EpochPlan):
    """Documents end to end, cut every sequence length.

    Where a row begins depends on all documents before it in the epoch's order. Only every 32nd
    beginning is kept, and only for the last two epochs asked for.
    """

    _BLOCK = 32
    _EPOCHS_KEPT = 2

    def __init__(self, lengths: np.ndarray, seq_len: int, seed: int):
        super().__init__(lengths, seq_len, seed, {"mode": "concat"})
        places = int(lengths.sum(dtype=np.int64))
        self.rows_per_epoch = -(-places // seq_len)
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
            padding=self.rows_per_epoch * seq_len - places,
        )

    @property
    def max_documents(self) -> int:
        # Two that are cut by the ends of the row, and between them the shortest there are.
        ends = np.cumsum(np.sort(self._lengths), dtype=np.int64)
        whole = int(np.searchsorted(ends, self.seq_len - 2, side="right"))
        return min(whole + 2, self.seq_len)

    def split_documents(self, epoch: int) -> int:
        """How many documents of this epoch lie in more than one row."""
        split = 0
        for start, ends in self._scan(epoch):
            starts = np.concatenate([[start], ends[:-1]])
            split += int(np.sum(starts // self.seq_len != (ends - 1) // self.seq_len))
        return split

    def _document(self, epoch: int, place: np.ndarray) -> np.ndarray:
        return permute(place, self._lengths.size, hash64(self._seed, DOCUMENTS, epoch))

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
        row_starts = place * self.seq_len
        row_ends = np.minimum(row_starts + self.seq_len, self._places)
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


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The integers of all ranges [first, last), one range after the other."""
    sizes = last - first
    skipped = np.repeat(first - (np.cumsum(sizes) - sizes), sizes)
    return np.arange(sizes.sum()) + skipped
