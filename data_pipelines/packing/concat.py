"""The plan of mode "concat": concatenated documents, split into rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from data_pipelines.packing.permutation import hash64, permute
from data_pipelines.packing.plan import DOCUMENTS, EpochPlan, Rows, Stats


class ConcatPlan(EpochPlan):
    """Concatenated documents, split every `seq_len` positions.

    The start of a row depends on all documents before it in the epoch. The start of every 32nd
    document is cached, for the two epochs used last.
    """

    _BLOCK = 32
    _EPOCHS_KEPT = 2

    def __init__(self, lengths: np.ndarray, seq_len: int, seed: int):
        super().__init__(lengths, seq_len, seed, {"mode": "concat"})
        positions = int(lengths.sum(dtype=np.int64))
        self.rows_per_epoch = -(-positions // seq_len)
        self._positions = positions
        self._lock = threading.Lock()
        self._block_starts: dict[int, np.ndarray] = {}
        self.stats = Stats(
            documents=lengths.size,
            dropped=0,
            shortened=0,
            split=self.split_documents(0),
            rows=self.rows_per_epoch,
            positions=positions,
            padding=self.rows_per_epoch * seq_len - positions,
        )

    @property
    def max_documents(self) -> int:
        # Two that are cut by the ends of the row, and between them the shortest there are.
        ends = np.cumsum(np.sort(self._lengths), dtype=np.int64)
        whole = int(np.searchsorted(ends, self.seq_len - 2, side="right"))
        return min(whole + 2, self.seq_len)

    def split_documents(self, epoch: int) -> int:
        """Number of documents of this epoch that are in more than one row."""
        split = 0
        for start, ends in self._scan(epoch):
            starts = np.concatenate([[start], ends[:-1]])
            split += int(np.sum(starts // self.seq_len != (ends - 1) // self.seq_len))
        return split

    def _document(self, epoch: int, index: np.ndarray) -> np.ndarray:
        return permute(index, self._lengths.size, hash64(self._seed, DOCUMENTS, epoch))

    def _scan(self, epoch: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields, for each block of an epoch, (its start, ends of its documents), in positions."""
        start = 0
        part = 2048 * self._BLOCK
        for first in range(0, self._lengths.size, part):
            index = np.arange(first, min(first + part, self._lengths.size))
            lengths = self._lengths[self._document(epoch, index)]
            ends = start + np.cumsum(lengths, dtype=np.int64)
            yield start, ends
            start = int(ends[-1])

    def _starts(self, epoch: int) -> np.ndarray:
        """Start position of every 32nd document of an epoch, int64."""
        with self._lock:
            if epoch not in self._block_starts:
                starts = [np.zeros(1, np.int64)]
                starts += [ends[self._BLOCK - 1 :: self._BLOCK] for _, ends in self._scan(epoch)]
                self._block_starts[epoch] = np.concatenate(starts)
                while len(self._block_starts) > self._EPOCHS_KEPT:
                    self._block_starts.pop(next(iter(self._block_starts)))
            return self._block_starts[epoch]

    def __getstate__(self) -> dict[str, object]:
        """Everything but the lock, for worker processes."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def _rows(self, epoch: np.ndarray, index: np.ndarray) -> Rows:
        pieces = [np.zeros((0, 3), np.int64)] * index.size
        for one in np.unique(epoch).tolist():
            which = np.flatnonzero(epoch == one)
            for j, row in zip(which.tolist(), self._rows_of_epoch(one, index[which]), strict=True):
                pieces[j] = row
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in pieces], dtype=np.int64)])
        return Rows(np.concatenate([np.zeros((0, 3), np.int64), *pieces]), offsets)

    def _rows_of_epoch(self, epoch: int, index: np.ndarray) -> list[np.ndarray]:
        row_starts = index * self.seq_len
        row_ends = np.minimum(row_starts + self.seq_len, self._positions)
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
        """The documents of all blocks that the rows touch: indices, starts, ends."""
        block_starts = self._starts(epoch)
        first = np.searchsorted(block_starts, row_starts, side="right") - 1
        last = np.searchsorted(block_starts, row_ends, side="left")
        blocks = np.unique(_ranges(first, last))
        index = (blocks[:, None] * self._BLOCK + np.arange(self._BLOCK)).reshape(-1)
        index = index[index < self._lengths.size]
        document = self._document(epoch, index)
        lengths = self._lengths[document].astype(np.int64)
        ends = np.cumsum(lengths)
        # The cumulative sum ignores gaps between blocks: correct it at the start of each block.
        block = index // self._BLOCK
        heads = np.flatnonzero(index % self._BLOCK == 0)
        sums_before = (ends - lengths)[heads]
        ends += np.repeat(block_starts[block[heads]] - sums_before, np.diff([*heads, index.size]))
        return document, ends - lengths, ends


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The concatenated integers of all ranges [first, last)."""
    sizes = last - first
    skipped = np.repeat(first - (np.cumsum(sizes) - sizes), sizes)
    return np.arange(sizes.sum()) + skipped
