"""Bin packing over a histogram of lengths: decides which lengths share a row.

Documents of equal length are interchangeable, so packing millions of documents takes about as many
steps as there are distinct lengths.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

# Increase this with every change that affects the templates.
ALGORITHM_VERSION = 1

# Fractions of a row that one document may leave empty before pairs and triples are tried. Small
# tolerances fill large sets best, large ones small sets.
_TOLERANCES = (1 / 64, 1 / 256, 1 / 1024, 1)

# Number of lengths tried as the first of a triple. More gain less than 0.01 % of fill.
_FIRST_OF_THREE = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Templates:
    """Rows as multisets of lengths.

    Attributes:
      lengths: int64 [E], the concatenated lengths of all templates.
      sizes: int64 [T], number of lengths of each template.
      copies: int64 [T], number of rows made from each template.
    """

    lengths: np.ndarray
    sizes: np.ndarray
    copies: np.ndarray

    @property
    def rows(self) -> int:
        return int(self.copies.sum())


def pack_histogram(histogram: np.ndarray, seq_len: int) -> Templates:
    """Packs lengths into few rows; every length is used as often as it occurs.

    Rows are filled from the longest length down, each with the lengths that leave the least space
    (after the minimum bin slack heuristic: Gupta and Ho, "A new heuristic algorithm for the
    one-dimensional bin-packing problem", 1999). The best of a few runs with different tolerances is
    taken. Only integers are used, so the result is the same on every platform.

    Args:
      histogram: integer [seq_len + 1], number of documents of each length; none of length 0.
      seq_len: capacity of a row.

    Returns:
      The templates of all rows.
    """
    fewest = -(-int(histogram @ np.arange(seq_len + 1)) // seq_len)
    best = None
    for tolerance in _TOLERANCES:
        templates = _pack(histogram, seq_len, int(seq_len * tolerance))
        if best is None or templates.rows < best.rows:
            best = templates
        if best.rows == fewest:
            break
    assert best is not None
    return best


def _pack(histogram: np.ndarray, seq_len: int, tolerance: int) -> Templates:
    stock = _Stock(histogram)
    lengths: list[int] = []
    sizes: list[int] = []
    copies: list[int] = []
    while longest := stock.longest(seq_len):
        stock.take(longest)
        row = [longest, *_fill(stock, seq_len - longest, tolerance)]
        lengths += row
        sizes.append(len(row))
        copies.append(1 + stock.take_again(row))
    return Templates(*(np.asarray(column, np.int64) for column in (lengths, sizes, copies)))


def _fill(stock: _Stock, gap: int, tolerance: int) -> list[int]:
    """Takes the lengths that fill the `gap` positions left by the first of a row."""
    row: list[int] = []
    while longest := stock.longest(gap):
        # While the gap is large, take the longest. At the end of the row, choose the last one, two
        # or three lengths together.
        if gap - longest <= tolerance or gap >= 4 * longest:
            stock.take(longest)
            row.append(longest)
            gap -= longest
        else:
            last = _closest(stock, gap)
            for length in last:
                stock.take(length)
            return row + last
    return row


def _closest(stock: _Stock, gap: int) -> list[int]:
    """One, two or three lengths in stock whose sum is closest to `gap` from below."""
    lengths = stock.available(gap)
    floor = stock.floor(gap)
    total, best = _closest_pair(stock, gap, lengths, floor)
    if total == gap or 3 * lengths[0] > gap:
        return best
    for first in lengths[: -_FIRST_OF_THREE - 1 : -1].tolist():
        rest = gap - first
        stock.take(first)
        others = lengths[: np.searchsorted(lengths, rest, side="right")]
        others = others[stock.counts[others] > 0]
        if others.size:
            pair_total, pair = _closest_pair(stock, rest, others, floor)
            if first + pair_total > total:
                total, best = first + pair_total, [first, *pair]
        stock.put_back(first)
        if total == gap:
            break
    return best


def _closest_pair(
    stock: _Stock, gap: int, lengths: np.ndarray, floor: np.ndarray
) -> tuple[int, list[int]]:
    """One or two of `lengths` as (sum, lengths), with the sum closest to `gap` from below."""
    partners = floor[gap - lengths]
    # The table may contain lengths that are used up: drop such partners.
    needed = 1 + (partners == lengths)
    partners = np.where(stock.counts[partners] >= needed, partners, 0)
    totals = lengths + partners
    # Of equal sums take the last, the most uneven pair: it keeps middle lengths for triples.
    choice = totals.size - 1 - int(totals[::-1].argmax())
    pair = [int(lengths[choice]), int(partners[choice])]
    return int(totals[choice]), [length for length in pair if length]


class _Stock:
    """The lengths that are not yet packed."""

    def __init__(self, histogram: np.ndarray):
        self.counts = np.array(histogram, np.int64)
        # Reversed, so that the search for the longest length below a bound ends early.
        self._present = self.counts[::-1] > 0

    def take(self, length: int) -> None:
        self.counts[length] -= 1
        self._present[-1 - length] = self.counts[length] > 0

    def put_back(self, length: int) -> None:
        self.counts[length] += 1
        self._present[-1 - length] = True

    def take_again(self, row: list[int]) -> int:
        """Takes the same row as often as possible; returns how often."""
        needed = collections.Counter(row)
        times = min(int(self.counts[length]) // count for length, count in needed.items())
        for length, count in needed.items():
            self.counts[length] -= times * count
            self._present[-1 - length] = self.counts[length] > 0
        return times

    def longest(self, bound: int) -> int:
        """The longest length that is at most `bound`; 0 if there is none."""
        bound = min(bound, self.counts.size - 1)
        below = self._present[self.counts.size - 1 - bound :]
        offset = int(below.argmax())
        return bound - offset if below[offset] else 0

    def available(self, bound: int) -> np.ndarray:
        """The lengths that are at most `bound`, ascending."""
        return np.flatnonzero(self.counts[: bound + 1] > 0)

    def floor(self, bound: int) -> np.ndarray:
        """For each value up to `bound`, the longest length that is not longer; 0 if none."""
        values = np.arange(min(bound + 1, self.counts.size))
        table = np.maximum.accumulate(np.where(self.counts[: values.size] > 0, values, 0))
        return table
