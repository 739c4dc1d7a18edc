"""BPE merges of letters, compiled by numba (the extra [fast]).

`tokenizer` uses this module where numba is installed, instead of SentencePiece. The results are the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np

_EMPTY = -1
_HASH = 0x9E3779B1  # of multiplicative hashing: 2**32 over the golden ratio


class Merges(NamedTuple):
    """Tables of a SentencePiece BPE model over letters.

    Attributes:
      units: the piece of each letter, int32 [letters].
      keys: pairs, left << 16 | right, in an open hash table, or -1, int64 [2 ** n].
      merged: the piece of each pair there, int32 [2 ** n].
      rank: of each piece in the order of merges, int32 [pieces].
    """

    units: np.ndarray
    keys: np.ndarray
    merged: np.ndarray
    rank: np.ndarray

    def encode(self, letters: np.ndarray) -> np.ndarray:
        """Letters, integer [n] -> ids, uint16 [m], those that SentencePiece gives."""
        return _merge(letters.astype(np.int32), *self)


def make_merges(pieces: Sequence[np.ndarray], scores: Sequence[float], num_letters: int) -> Merges:
    """The tables of a model.

    Pairs are merged in the order of scores, the leftmost first, wherever the letters of both
    together are a piece.

    Args:
      pieces: the letters of each, none for special ones.
      scores: of each.
      num_letters: each has a piece.
    """
    ids = {piece.tobytes(): token for token, piece in enumerate(pieces) if len(piece)}
    units = np.zeros(num_letters, np.int32)
    pairs: dict[int, int] = {}
    for token, piece in enumerate(pieces):
        if len(piece) == 1:
            units[piece[0]] = token
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut].tobytes()), ids.get(piece[cut:].tobytes())
            if left is not None and right is not None:
                pairs[left << 16 | right] = token
    size = 1 << max(4, (4 * len(pairs)).bit_length())
    keys, merged = np.full(size, _EMPTY, np.int64), np.zeros(size, np.int32)
    for key, token in pairs.items():
        slot = (key * _HASH & 0xFFFFFFFF) % size
        while keys[slot] != _EMPTY:
            slot = (slot + 1) % size
        keys[slot], merged[slot] = key, token
    rank = np.empty(len(pieces), np.int32)
    rank[np.argsort(-np.asarray(scores), kind="stable")] = np.arange(len(pieces))
    return Merges(units, keys, merged, rank)


@numba.njit(cache=True, nogil=True)
def _find(left: int, right: int, keys: np.ndarray, merged: np.ndarray) -> int:
    """The piece of a pair, or -1."""
    key = np.int64(left) << 16 | right
    slot = (key * 0x9E3779B1 & 0xFFFFFFFF) & (len(keys) - 1)
    while keys[slot] != key:
        if keys[slot] == -1:
            return -1
        slot = (slot + 1) & (len(keys) - 1)
    return merged[slot]


@numba.njit(cache=True, nogil=True)
def _push(heap: np.ndarray, size: int, value: np.int64) -> int:
    """Adds a value to a binary heap. Returns its new size."""
    at = size
    while at and heap[(at - 1) >> 1] > value:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = value
    return size + 1


@numba.njit(cache=True, nogil=True)
def _pop(heap: np.ndarray, size: int) -> int:
    """Removes the smallest value of a binary heap, its first. Returns its new size."""
    size -= 1
    value = heap[size]
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value
    return size


@numba.njit(cache=True, nogil=True)
def _merge(
    letters: np.ndarray, units: np.ndarray, keys: np.ndarray, merged: np.ndarray, rank: np.ndarray
) -> np.ndarray:
    n = len(letters)
    piece = units[letters]
    before, after = np.arange(-1, n - 1), np.arange(1, n + 1)
    # A heap of rank << 32 | position of the left piece. Each merge adds at most two pairs.
    heap = np.empty(3 * n + 1, np.int64)
    size = 0
    for at in range(n - 1):
        whole = _find(piece[at], piece[at + 1], keys, merged)
        if whole >= 0:
            size = _push(heap, size, np.int64(rank[whole]) << 32 | at)
    while size:
        top = heap[0]
        size = _pop(heap, size)
        at = top & 0xFFFFFFFF
        right = after[at]
        if piece[at] < 0 or right >= n:
            continue
        whole = _find(piece[at], piece[right], keys, merged)
        if whole < 0 or rank[whole] != top >> 32:
            continue  # one of the pair was merged with another piece before
        piece[at], piece[right] = whole, -1
        after[at] = after[right]
        if after[at] < n:
            before[after[at]] = at
            whole = _find(piece[at], piece[after[at]], keys, merged)
            if whole >= 0:
                size = _push(heap, size, np.int64(rank[whole]) << 32 | at)
        if before[at] >= 0:
            whole = _find(piece[before[at]], piece[at], keys, merged)
            if whole >= 0:
                size = _push(heap, size, np.int64(rank[whole]) << 32 | before[at])
    return piece[piece >= 0].astype(np.uint16)
