"""The validation of `macroblocks` on many slices at a time, for speed.

Slices do not depend on each other, so they are read in step, each at its own place: a numpy call
reads the same syntax element of all slices that have it next. Only whether a slice is valid is
found here; `macroblocks.parse` gives the reason and the position of a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.representations.avc import cavlc
from data_pipelines.representations.avc.bitstream import P
from data_pipelines.representations.avc.macroblocks import (
    DC_4X4,
    I_4X4,
    I_16X16,
    I_PCM,
    INTRA_IN_P,
    LEFT,
    LUMA_X,
    LUMA_Y,
    MAX_QP_RAISED,
    NEEDS_4X4,
    NEEDS_16X16,
    NEEDS_CHROMA,
    P_16X16,
    UP,
    UP_LEFT,
    Slice,
)

_PAD = 256  # bytes after the last slice: more than a block that begins before them can take
_WINDOW = 7  # bytes that a window of bits is cut from

_ZEROS = np.array([16 - value.bit_length() for value in range(1 << 16)], np.int64)
_CBP_INTRA, _CBP_INTER = np.array(cavlc.CBP_INTRA), np.array(cavlc.CBP_INTER)
_NEEDS_4X4, _NEEDS_16X16 = np.array(NEEDS_4X4), np.array(NEEDS_16X16)
_NEEDS_CHROMA = np.array(NEEDS_CHROMA)
# Class of nC by the sum of the neighbours' totals, with one neighbour or none, and with both.
_CLASSES = np.array(
    [[cavlc.nc_class(total) for total in range(33)],
     [cavlc.nc_class(total + 1 >> 1) for total in range(33)]]
)  # fmt: skip


def _level_tables() -> tuple[np.ndarray, np.ndarray]:
    """By suffixLength and level_prefix: bits of a level; and, with `first` in front, the
    suffixLength after it (9.2.2.1)."""
    bits = np.zeros((7, 17), np.int64)
    after = np.zeros((2, 7, 17), np.int64)
    for length, prefix in np.ndindex(7, 16):
        suffix = 12 if prefix == 15 else 4 if prefix == 14 and length == 0 else length
        bits[length, prefix] = prefix + 1 + suffix
        for first in range(2):
            code = (prefix << length) + (15 if prefix == 15 and length == 0 else 0) + 2 * first
            largest = code + (1 << suffix) - 1
            # All suffixes of a prefix agree on which side of the threshold the level is.
            now = max(length, 1)
            sides = {(value + 2 >> 1) > 3 << now - 1 for value in (code, largest)}
            if first and length > 1:
                continue  # the first level has a suffixLength of 0 or 1
            if len(sides) != 1:
                raise AssertionError("a level_prefix that does not decide the next suffixLength")
            after[first, length, prefix] = min(6, now + sides.pop())
    return bits, after


_LEVEL_BITS, _LEVEL_AFTER = _level_tables()


class Batch(NamedTuple):
    """Slices of one size of picture. All but the data and the picture's are int64 [n].

    Attributes:
      windows: by byte of all slices' data, that byte and the six after it, int64.
      at: first bit of the slice data.
      end: its stop bit.
      first, mbs, num_ref_idx, qp: see `macroblocks.Slice`.
      in_p: 1 for P slices.
      columns, mvd_bits: see `macroblocks.Slice`.
    """

    windows: np.ndarray
    at: np.ndarray
    end: np.ndarray
    first: np.ndarray
    mbs: np.ndarray
    num_ref_idx: np.ndarray
    qp: np.ndarray
    in_p: np.ndarray
    columns: int
    mvd_bits: int


def make_batch(slices: Sequence[tuple[bytes, int, Slice]]) -> Batch:
    """Slices as arrays.

    Args:
      slices: of each the arguments of `macroblocks.parse`; the pictures are of one size.
    """
    data = np.frombuffer(b"".join([*(piece for piece, _, _ in slices), bytes(_PAD)]), np.uint8)
    lengths = np.array([len(piece) for piece, _, _ in slices])
    ends = lengths.cumsum()
    last = data[ends - 1].astype(np.int64)
    low_zeros = np.array([(value & -value).bit_length() - 1 for value in range(256)])
    windows = np.zeros(len(data) - _WINDOW + 1, np.int64)
    for place in range(_WINDOW):
        windows <<= 8
        windows |= data[place : place + len(windows)]
    shapes = [shape for _, _, shape in slices]
    return Batch(
        windows=windows,
        at=8 * (ends - lengths) + np.array([start for _, start, _ in slices]),
        end=8 * ends - 1 - low_zeros[last],
        first=np.array([shape.first for shape in shapes]),
        mbs=np.array([shape.mbs for shape in shapes]),
        num_ref_idx=np.array([shape.num_ref_idx for shape in shapes]),
        qp=np.array([shape.qp for shape in shapes]),
        in_p=np.array([shape.slice_type == P for shape in shapes], np.int64),
        columns=shapes[0].columns,
        mvd_bits=shapes[0].mvd_bits,
    )


def are_valid(slices: Batch) -> np.ndarray:
    """Whether `macroblocks.parse` takes each slice, bool [n]."""
    return _Reader(slices).read()


class _Reader:
    """Positions and contexts of all slices; methods take the indices of those they read for."""

    def __init__(self, slices: Batch):
        self._slices = slices
        count, most = len(slices.at), int(slices.mbs.max())
        self._at = slices.at.copy()
        self._right = np.ones(count, bool)
        self._mb = np.zeros(count, np.int64)  # macroblocks of the slice that are read
        self._qp = slices.qp.copy()
        # TotalCoeff of 16 luma blocks by row and column, then 4 of Cb and 4 of Cr.
        self._totals = np.zeros((count, most, 24), np.uint8)
        self._modes = np.full((count, most if not slices.in_p.all() else 0, 16), DC_4X4, np.int8)

    def read(self) -> np.ndarray:
        slices = self._slices
        active = np.arange(len(self._at))
        while active.size:
            self._skip_run(active[slices.in_p[active] == 1])
            active = self._going(active)
            self._macroblock(active)
            self._mb[active] += 1
            active = self._going(active)
        return self._right & (self._at == slices.end)

    def _going(self, i: np.ndarray) -> np.ndarray:
        return i[self._right[i] & (self._mb[i] < self._slices.mbs[i])]

    # Codes

    def _peek(self, at: np.ndarray, count: int) -> np.ndarray:
        window = self._slices.windows[at >> 3]
        return window >> (8 * _WINDOW - count - (at & 7)) & (1 << count) - 1

    def _require(self, i: np.ndarray, right: np.ndarray) -> None:
        self._right[i] &= right & (self._at[i] <= self._slices.end[i])

    def _u(self, i: np.ndarray, count: int) -> np.ndarray:
        value = self._peek(self._at[i], count)
        self._at[i] += count
        return value

    def _ue(self, i: np.ndarray, limit: np.ndarray | int) -> np.ndarray:
        """Exp-Golomb codes up to a limit; 0 where there is none."""
        at = self._at[i]
        window = self._peek(at, 32)
        zeros = _ZEROS[window >> 16]
        value = (window >> 31 - 2 * np.minimum(zeros, 15)) - 1
        right = (zeros < 16) & (value <= limit)
        self._at[i] = at + 2 * zeros + 1
        self._require(i, right)
        return np.where(right, value, 0)

    def _se(self, i: np.ndarray, limit: int) -> np.ndarray:
        code = self._ue(i, 2 * limit)
        return np.where(code & 1, code + 1 >> 1, -(code >> 1))

    # Syntax, in the order of `macroblocks`

    def _skip_run(self, i: np.ndarray) -> None:
        if i.size:
            self._mb[i] += self._ue(i, self._slices.mbs[i] - self._mb[i])

    def _macroblock(self, i: np.ndarray) -> None:
        if not i.size:
            return
        slices = self._slices
        mb = self._mb[i]
        column = (slices.first[i] + mb) % slices.columns
        left, up = (column > 0) & (mb > 0), mb >= slices.columns
        corner = (column > 0) & (mb > slices.columns)
        samples = LEFT * left | UP * up | UP_LEFT * corner
        in_p = slices.in_p[i]
        mb_type = self._ue(i, I_PCM - 1 + INTRA_IN_P * in_p)
        inter = (in_p == 1) & (mb_type == P_16X16)
        mb_type = mb_type - INTRA_IN_P * in_p
        whole = ~inter & (mb_type >= I_16X16)
        self._require(i, inter | whole | ((in_p == 0) & (mb_type == I_4X4)))
        cbp = np.where(whole, (mb_type - 1) // 4 % 3 << 4 | 15 * (mb_type > 12), 0)
        needed = np.where(whole, _NEEDS_16X16[(mb_type - 1) % 4], 0)
        self._require(i, needed & ~samples == 0)

        self._inter_prediction(i[inter])
        small = (in_p == 0) & ~whole
        self._intra_4x4(i[small], samples[small])
        chroma = self._ue(i[~inter], 3)
        self._require(i[~inter], _NEEDS_CHROMA[chroma] & ~samples[~inter] == 0)
        code = self._ue(i[~whole], 47)
        cbp[~whole] = np.where(inter[~whole], _CBP_INTER[code], _CBP_INTRA[code])

        coded = (whole | (cbp > 0)) & self._right[i]
        i, cbp, whole, left, up = (a[coded] for a in (i, cbp, whole, left, up))
        self._qp_delta(i)
        self._residual(i, cbp, whole, left, up)

    def _inter_prediction(self, i: np.ndarray) -> None:
        references = self._slices.num_ref_idx[i]
        self._u(i[references == 2], 1)
        more = references > 2
        self._ue(i[more], references[more] - 1)
        for _ in range(2):
            mvd = self._se(i, (1 << self._slices.mvd_bits) - 1)
            self._require(i, mvd % 4 == 0)

    def _qp_delta(self, i: np.ndarray) -> None:
        qp = self._qp[i] + self._se(i, 26)
        slice_qp = self._slices.qp[i]
        raised = (slice_qp <= qp) & (qp <= MAX_QP_RAISED)
        self._require(i, (qp == slice_qp) | raised)
        self._qp[i] = qp

    def _intra_4x4(self, i: np.ndarray, samples: np.ndarray) -> None:
        if not i.size:
            return
        mb, columns = self._mb[i], self._slices.columns
        left, up = samples & LEFT > 0, samples & UP > 0
        beside, above = self._modes[i, mb - 1], self._modes[i, np.maximum(mb - columns, 0)]
        modes = np.empty((i.size, 16), np.int8)
        for x, y in zip(LUMA_X, LUMA_Y, strict=True):
            at = self._at[i]
            bits = self._peek(at, 4)
            flag = bits >> 3
            near_left = modes[:, 4 * y + x - 1] if x else np.where(left, beside[:, 4 * y + 3], -1)
            near_up = modes[:, 4 * y + x - 4] if y else np.where(up, above[:, 12 + x], -1)
            expected = np.minimum(near_left, near_up)
            expected = np.where(expected < 0, DC_4X4, expected)
            rest = bits & 7
            mode = np.where(flag, expected, rest + (rest >= expected))
            there = samples if x == y == 0 else LEFT | UP | UP_LEFT
            if x == 0 and y:
                there = (LEFT | UP_LEFT) * left | UP
            elif y == 0 and x:
                there = (UP | UP_LEFT) * up | LEFT
            self._at[i] = at + np.where(flag, 1, 4)
            self._require(i, _NEEDS_4X4[mode] & ~there == 0)
            modes[:, 4 * y + x] = mode
        self._modes[i, mb] = modes

    def _residual(
        self, i: np.ndarray, cbp: np.ndarray, whole: np.ndarray, left: np.ndarray, up: np.ndarray
    ) -> None:
        mb = self._mb[i]
        # Neighbours outside the slice count as blocks of 0 here; `left` and `up` say which.
        beside = self._totals[i, mb - 1] * left[:, None]
        above = self._totals[i, np.maximum(mb - self._slices.columns, 0)] * up[:, None]
        totals = np.zeros((i.size, 24), np.uint8)

        def classes(k: np.ndarray, base: int, side: int, x: int, y: int) -> np.ndarray:
            """9.2.1, for a block of a plane of side x side blocks."""
            at = base + side * y + x
            near_left = totals[k, at - 1] if x else beside[k, at + side - 1]
            near_up = totals[k, at - side] if y else above[k, at + side * (side - 1)]
            both = (left[k] if x == 0 else True) & (up[k] if y == 0 else True)
            return _CLASSES[np.asarray(both, np.int64), near_left.astype(np.int64) + near_up]

        k = np.flatnonzero(whole & self._right[i])
        self._block(i[k], 16, classes(k, 0, 4, 0, 0))
        for place, (x, y) in enumerate(zip(LUMA_X, LUMA_Y, strict=True)):
            coded = (cbp >> place // 4 & 1 == 1) & self._right[i]
            for size, kind in ((15, whole), (16, ~whole)):
                k = np.flatnonzero(coded & kind)
                totals[k, 4 * y + x] = self._block(i[k], size, classes(k, 0, 4, x, y))
        for _ in range(2):
            k = np.flatnonzero((cbp >> 4 > 0) & self._right[i])
            self._block(i[k], 4, np.full(k.size, cavlc.nc_class(-1)))
        for place in range(8):
            base, x, y = 16 + place // 4 * 4, place % 2, place // 2 % 2
            k = np.flatnonzero((cbp >> 4 == 2) & self._right[i])
            totals[k, base + 2 * y + x] = self._block(i[k], 15, classes(k, base, 2, x, y))
        self._totals[i, mb] = totals

    def _block(self, i: np.ndarray, size: int, classes: np.ndarray) -> np.ndarray:
        """One residual block (9.2) of each slice: TotalCoeff."""
        if not i.size:
            return np.zeros(0, np.int64)
        at = self._at[i]
        table = cavlc.COEFF_TOKEN_TABLE
        entry = table.entries[classes, self._peek(at, table.bits)]
        at += entry & 31
        totals, right = entry >> 7, (entry > 0) & (entry >> 7 <= size)
        some = np.flatnonzero(right & (totals > 0))
        if some.size:
            at[some], right[some] = self._coefficients(
                at[some], totals[some], entry[some] >> 5 & 3, size
            )
        self._at[i] = at
        self._require(i, right)
        return totals

    def _coefficients(
        self, at: np.ndarray, totals: np.ndarray, ones: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Levels and runs of blocks with coefficients: (where they end, whether they are right)."""
        at = at + ones
        right = np.ones(len(at), bool)
        k = np.flatnonzero(totals > ones)
        length = ((totals > 10) & (ones < 3)).astype(np.int64)[k]
        first = (ones < 3).astype(np.int64)[k]
        levels = (totals - ones)[k]
        here = at[k]
        for place in range(1, 17):
            if not k.size:
                break
            prefix = _ZEROS[self._peek(here, 16)]
            right[k] &= prefix < 16
            here = here + _LEVEL_BITS[length, prefix]
            at[k] = here
            on = levels > place
            length = _LEVEL_AFTER[first, length, prefix][on]
            k, levels, here = k[on], levels[on], here[on]
            first = np.zeros(k.size, np.int64)

        # A damaged block reads on without harm: no code is longer than what is put behind the data.
        zeros = np.zeros(len(at), np.int64)
        k = np.flatnonzero(totals < size)
        table = cavlc.TOTAL_ZEROS_TABLE
        row = totals[k] - 1 + (15 if size == 4 else 0)
        entry = table.entries[row, self._peek(at[k], table.bits)]
        at[k] += entry & 31
        zeros[k] = entry >> 5
        right[k] &= (entry > 0) & (totals[k] + zeros[k] <= size)

        table = cavlc.RUN_BEFORE_TABLE
        k = np.flatnonzero((zeros > 0) & (totals > 1))
        zeros, runs, here = zeros[k], totals[k] - 1, at[k]
        for place in range(1, 16):
            if not k.size:
                break
            entry = table.entries[np.minimum(zeros, 7) - 1, self._peek(here, table.bits)]
            here = here + (entry & 31)
            at[k] = here
            zeros = zeros - (entry >> 5)
            right[k] &= (entry > 0) & (zeros >= 0)
            on = (zeros > 0) & (runs > place)
            k, zeros, runs, here = k[on], zeros[on], runs[on], here[on]
        return at, right
