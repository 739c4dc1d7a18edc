"""Slice data of AVC-LM's streams, strictly to the last bit: macroblocks and trailing bits.

`parse` reads the data of one slice as ITU-T H.264 7.3.4 and 7.3.5 write it down, with CAVLC (9.2)
and what the encoder's settings leave of it: constant QP, one reference list, no partitions. It
returns the syntax elements as values, or raises a `Fault` with the first bit that is wrong. This is
the definition; `macroblock_batch` reads many slices at a time with the same result.

What is checked, by syntax element:

    mb_skip_run              no more than the slice has left
    mb_type                  I_4x4 and I_16x16 in I slices, P_L0_16x16 and I_16x16 in P slices
    intra prediction modes   samples that they need are in the slice (8.3.1.2, 8.3.3, 8.3.4)
    ref_idx_l0               te(v), below num_ref_idx_active
    mvd_l0                   whole pixels (subme 0), between vectors that point to the picture or
                             at most 24 pixels outside of it
    coded_block_pattern      me(v) has 48 values
    mb_qp_delta              the QP stays from the slice's to MAX_QP_RAISED
    residual blocks          coeff_token of the nC that neighbours give, no more coefficients than
                             the block holds, level_prefix up to 15, total_zeros and run_before
                             within the block
    end of slice             after its last macroblock the stop bit, and nothing else

The values of coefficients and motion vectors are not judged beyond that.
"""

from __future__ import annotations

from typing import NamedTuple

from data_pipelines.representations.avc import cavlc
from data_pipelines.representations.avc.bitstream import P

# mb_type (Tables 7-11 and 7-13): in P slices, intra types are counted from INTRA_IN_P on.
I_4X4 = 0
I_16X16 = 1  # to 24: 1 + prediction mode + 4 * chroma pattern + 12 * (luma pattern is 15)
I_PCM = 25
P_16X16 = 0
INTRA_IN_P = 5
_P_NAMES = ("P_L0_16x16", "P_L0_L0_16x8", "P_L0_L0_8x16", "P_8x8", "P_8x8ref0")

# Prediction modes by what they need: bits of the neighbours left, up and up-left.
LEFT, UP, UP_LEFT = 1, 2, 4
_ALL = LEFT | UP | UP_LEFT
NEEDS_4X4 = (UP, LEFT, 0, UP, _ALL, _ALL, _ALL, UP, LEFT)  # Table 8-2
NEEDS_16X16 = (UP, LEFT, 0, _ALL)  # Table 8-4
NEEDS_CHROMA = (0, LEFT, UP, _ALL)  # Table 8-5
DC_4X4 = 2

# Luma blocks in the order of their coding (6.4.3): columns and rows in blocks of 4x4.
LUMA_X = (0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3)
LUMA_Y = (0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3)

# CAVLC has no code for levels past 2063, which only a QP below this one reaches; then x264 raises
# the QP of a macroblock.
MAX_QP_RAISED = 12
_MV_MARGIN = 24  # pixels: how far outside the picture x264 lets motion vectors point


_CUT = "the slice ends within it"


class Fault(ValueError):
    """A slice that is damaged.

    Attributes:
      bit: where the first wrong syntax element begins, counted from the slice data's first bit.
      macroblock: its address in the picture.
      reason: what is wrong, in words that are the same for every slice with this fault.
    """

    def __init__(self, bit: int, macroblock: int, reason: str):
        super().__init__(f"macroblock {macroblock}: {reason}")
        self.bit, self.macroblock, self.reason = bit, macroblock, reason


class Slice(NamedTuple):
    """What the parts above the macroblocks determine about the data of one slice.

    Attributes:
      columns: macroblocks of a row of the picture.
      first: address of the slice's first macroblock.
      mbs: its macroblocks.
      slice_type: I or P.
      num_ref_idx: references of a P slice.
      qp: of the slice.
      mvd_bits: |mvd_l0| is less than 2 to this power, in quarter pixels: see `mvd_bits`.
    """

    columns: int
    first: int
    mbs: int
    slice_type: int
    num_ref_idx: int
    qp: int
    mvd_bits: int


def mvd_bits(columns: int, rows: int) -> int:
    """Bits of the largest difference of two motion vectors, for a picture of such macroblocks."""
    farthest = 4 * (16 * (max(columns, rows) - 1) + _MV_MARGIN)
    return (2 * farthest).bit_length()


class Macroblock(NamedTuple):
    """The syntax elements of one macroblock that is not skipped.

    Attributes:
      address: in the picture.
      mb_type: as in I slices, or P_16X16 with `inter`.
      inter: whether it is P_L0_16x16.
      modes: of each block of I_4x4: -1 for prev_intra4x4_pred_mode_flag, else the value of
        rem_intra4x4_pred_mode.
      chroma_mode: intra_chroma_pred_mode; -1 for inter.
      ref_idx: of P_L0_16x16, else 0.
      mvd: of P_L0_16x16, (horizontal, vertical).
      cbp: coded_block_pattern, of I_16x16 from mb_type.
      qp_delta: mb_qp_delta; None where it is not coded.
      blocks: coefficients in scan order of each block that is coded, by (kind, place): kinds are
        those of `Residual`.
    """

    address: int
    mb_type: int
    inter: bool
    modes: tuple[int, ...]
    chroma_mode: int
    ref_idx: int
    mvd: tuple[int, int]
    cbp: int
    qp_delta: int | None
    blocks: dict[tuple[str, int], list[int]]


def parse(data: bytes, start: int, shape: Slice) -> list[Macroblock]:
    """The macroblocks of one slice that are not skipped.

    Args:
      data: of the NAL unit, emulation prevention undone, its last byte not 00.
      start: bit at which the slice data begins.
      shape: of the slice.

    Raises Fault.
    """
    return _Parser(data, start, shape).slice_data()


class _Parser:
    def __init__(self, data: bytes, start: int, shape: Slice):
        self._shape = shape
        self._size = 8 * len(data)
        self._value = int.from_bytes(data + bytes(8), "big")
        self._total = self._size + 64
        self._start = self._at = start
        # The stop bit.
        self._end = self._size - (data[-1] & -data[-1]).bit_length()
        self._from = start  # of the syntax element at hand
        self._address = shape.first
        self._qp = shape.qp
        # By address: TotalCoeff of 16 luma blocks by row and column, then 4 of Cb and 4 of Cr.
        self._totals: dict[int, list[int]] = {}
        # By address of I_4x4: prediction modes by row and column.
        self._modes: dict[int, list[int]] = {}

    # Bits

    def _fault(self, reason: str) -> Fault:
        return Fault(self._from - self._start, self._address, reason)

    def _peek(self, count: int) -> int:
        return self._value >> self._total - self._at - count & (1 << count) - 1

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > self._end:
            raise self._fault(_CUT)

    def _u(self, count: int) -> int:
        self._from = self._at
        value = self._peek(count)
        self._skip(count)
        return value

    def _ue(self, limit: int, name: str) -> int:
        """An unsigned Exp-Golomb code of a value up to the limit."""
        self._from = self._at
        window = self._peek(32)
        zeros = 32 - window.bit_length()
        if zeros > 15:
            if self._at + zeros >= self._end:
                raise self._fault(_CUT)
            raise self._fault(f"{name} is out of range")
        value = (window >> 31 - 2 * zeros) - 1
        self._skip(2 * zeros + 1)
        if value > limit:
            raise self._fault(f"{name} is out of range")
        return value

    def _se(self, limit: int, name: str) -> int:
        value = self._ue(2 * limit, name)
        return value + 1 >> 1 if value & 1 else -(value >> 1)

    def _code(self, table: cavlc.Lookup, row: int, name: str) -> int:
        self._from = self._at
        entry = int(table.entries[row, self._peek(table.bits)])
        if not entry:
            if self._at + table.bits > self._end:
                raise self._fault(_CUT)
            raise self._fault(f"{name} is no codeword")
        self._skip(entry & 31)
        return entry >> 5

    # 7.3.4

    def slice_data(self) -> list[Macroblock]:
        shape = self._shape
        last = shape.first + shape.mbs
        found = []
        while self._address < last:
            if shape.slice_type == P:
                run = self._ue(last - self._address, "mb_skip_run")
                for _ in range(run):
                    self._totals[self._address] = [0] * 24
                    self._address += 1
                if self._address == last:
                    break
            found.append(self._macroblock())
            self._address += 1
        self._from = self._at
        if self._at != self._end:
            self._address = last - 1
            raise self._fault("bits follow the slice's last macroblock")
        return found

    # 7.3.5

    def _macroblock(self) -> Macroblock:
        mb_type, inter = self._mb_type()
        modes: tuple[int, ...] = ()
        chroma_mode, ref_idx, mvd = -1, 0, (0, 0)
        if inter:
            ref_idx = self._ref_idx()
            mvd = self._mvd(), self._mvd()
        else:
            if mb_type == I_4X4:
                modes = self._intra_4x4()
            elif NEEDS_16X16[(mb_type - 1) % 4] & ~self._samples(0, 0):
                raise self._fault("the Intra_16x16 prediction mode needs samples outside the slice")
            chroma_mode = self._ue(3, "intra_chroma_pred_mode")
            if NEEDS_CHROMA[chroma_mode] & ~self._samples(0, 0):
                raise self._fault("intra_chroma_pred_mode needs samples outside the slice")
        if mb_type >= I_16X16 and not inter:
            cbp = (mb_type - 1) // 4 % 3 << 4 | (15 if mb_type > 12 else 0)
        else:
            code = self._ue(47, "coded_block_pattern")
            cbp = (cavlc.CBP_INTER if inter else cavlc.CBP_INTRA)[code]
        whole = mb_type >= I_16X16 and not inter
        qp_delta = None
        self._totals[self._address] = [0] * 24
        blocks: dict[tuple[str, int], list[int]] = {}
        if cbp or whole:
            qp_delta = self._mb_qp_delta()
            self._residual(cbp, whole, blocks)
        return Macroblock(
            self._address, mb_type, inter, modes, chroma_mode, ref_idx, mvd, cbp, qp_delta, blocks
        )

    def _mb_type(self) -> tuple[int, bool]:
        in_p = self._shape.slice_type == P
        mb_type = self._ue(I_PCM + INTRA_IN_P * in_p, "mb_type")
        if in_p and mb_type == P_16X16:
            return mb_type, True
        if in_p and mb_type < INTRA_IN_P:
            raise self._fault(f"mb_type {_P_NAMES[mb_type]}, which the encoder's settings rule out")
        mb_type -= INTRA_IN_P * in_p
        if mb_type == I_PCM:
            raise self._fault("mb_type I_PCM, which the encoder's settings rule out")
        if in_p and mb_type == I_4X4:
            raise self._fault("mb_type I_4x4 in a P slice, which the encoder's settings rule out")
        return mb_type, False

    def _neighbour(self, left: int, up: int) -> int:
        """The address so many columns left and rows up; -1 if it is not available (6.4.9)."""
        column = self._address % self._shape.columns - left
        if not 0 <= column < self._shape.columns:
            return -1
        address = self._address - left - up * self._shape.columns
        return address if address >= self._shape.first else -1

    def _samples(self, x: int, y: int) -> int:
        """Which of LEFT, UP and UP_LEFT there are of a block in this macroblock."""
        left, up = (1, 0), (0, 1)
        corner = (1, 1) if x == 0 and y == 0 else left if x == 0 else up
        return (
            LEFT * (x > 0 or self._neighbour(*left) >= 0)
            | UP * (y > 0 or self._neighbour(*up) >= 0)
            | UP_LEFT * ((x > 0 and y > 0) or self._neighbour(*corner) >= 0)
        )

    def _intra_4x4(self) -> tuple[int, ...]:
        """7.3.5.1 and 8.3.1.1."""
        coded, modes = [], [DC_4X4] * 16
        self._modes[self._address] = modes
        for x, y in zip(LUMA_X, LUMA_Y, strict=True):
            at = self._at
            flag = self._u(1)
            rest = -1 if flag else self._u(3)
            self._from = at
            near = [self._mode(x - 1, y), self._mode(x, y - 1)]
            expected = min(near) if min(near) >= 0 else DC_4X4
            mode = expected if flag else rest + (rest >= expected)
            if NEEDS_4X4[mode] & ~self._samples(x, y):
                raise self._fault("an Intra_4x4 prediction mode needs samples outside the slice")
            modes[4 * y + x] = mode
            coded.append(rest)
        return tuple(coded)

    def _mode(self, x: int, y: int) -> int:
        """The prediction mode of a block; -1 if it is not available."""
        address = self._neighbour(int(x < 0), int(y < 0))
        if address < 0:
            return -1
        modes = self._modes.get(address)
        return DC_4X4 if modes is None else modes[4 * (y % 4) + x % 4]

    def _ref_idx(self) -> int:
        references = self._shape.num_ref_idx
        if references == 1:
            return 0
        if references == 2:  # te(v) with a range of 1 (9.1)
            return 1 - self._u(1)
        return self._ue(references - 1, "ref_idx_l0")

    def _mvd(self) -> int:
        value = self._se((1 << self._shape.mvd_bits) - 1, "mvd_l0")
        if value % 4:
            raise self._fault("mvd_l0 is no whole pixel, which the encoder's settings rule out")
        return value

    def _mb_qp_delta(self) -> int:
        delta = self._se(26, "mb_qp_delta")
        qp = self._qp + delta
        if qp != self._shape.qp and not self._shape.qp <= qp <= MAX_QP_RAISED:
            raise self._fault("mb_qp_delta leaves the constant QP")
        self._qp = qp
        return delta

    # 7.3.5.3

    def _residual(self, cbp: int, whole: bool, blocks: dict[tuple[str, int], list[int]]) -> None:
        if whole:
            blocks["luma_dc", 0] = self._block(16, self._luma_nc(0, 0))
        totals = self._totals[self._address]
        for place, (x, y) in enumerate(zip(LUMA_X, LUMA_Y, strict=True)):
            if cbp >> place // 4 & 1:
                block = self._block(15 if whole else 16, self._luma_nc(x, y))
                totals[4 * y + x] = sum(map(bool, block))
                blocks["luma_ac" if whole else "luma", place] = block
        if cbp >> 4:
            for plane in range(2):
                blocks["chroma_dc", plane] = self._block(4, -1)
        if cbp >> 4 == 2:
            for place in range(8):
                plane, x, y = place // 4, place % 2, place // 2 % 2
                block = self._block(15, self._chroma_nc(plane, x, y))
                totals[16 + place] = sum(map(bool, block))
                blocks["chroma_ac", place] = block

    def _luma_nc(self, x: int, y: int) -> int:
        return self._nc(
            (self._neighbour(int(x == 0), 0), 4 * y + (x - 1) % 4),
            (self._neighbour(0, int(y == 0)), 4 * ((y - 1) % 4) + x),
        )

    def _chroma_nc(self, plane: int, x: int, y: int) -> int:
        base = 16 + 4 * plane
        return self._nc(
            (self._neighbour(int(x == 0), 0), base + 2 * y + 1 - x),
            (self._neighbour(0, int(y == 0)), base + 2 * (1 - y) + x),
        )

    def _nc(self, *blocks: tuple[int, int]) -> int:
        """9.2.1: from the totals of the blocks left and up, (address or -1, place)."""
        near = [self._totals[address][place] for address, place in blocks if address >= 0]
        return sum(near) + 1 >> 1 if len(near) == 2 else sum(near)

    # 9.2

    def _block(self, size: int, nc: int) -> list[int]:
        token = self._code(cavlc.COEFF_TOKEN_TABLE, cavlc.nc_class(nc), "coeff_token")
        total, ones = token >> 2, token & 3
        if total > size:
            raise self._fault("coeff_token has more coefficients than its block")
        block = [0] * size
        if not total:
            return block
        levels = [1 - 2 * self._u(1) for _ in range(ones)]
        suffix_length = int(total > 10 and ones < 3)
        for place in range(ones, total):
            level = self._level(suffix_length, first=place == ones < 3)
            suffix_length = max(suffix_length, 1)
            if abs(level) > 3 << suffix_length - 1 and suffix_length < 6:
                suffix_length += 1
            levels.append(level)
        zeros = self._total_zeros(total, size) if total < size else 0
        at = total + zeros - 1
        for place, level in enumerate(levels):
            block[at] = level
            if zeros and place < total - 1:
                run = self._code(cavlc.RUN_BEFORE_TABLE, min(zeros, 7) - 1, "run_before")
                if run > zeros:
                    raise self._fault("run_before is more than the zeros that are left")
                zeros -= run
                at -= run
            at -= 1
        return block

    def _level(self, suffix_length: int, *, first: bool) -> int:
        """9.2.2.1; the first level after fewer than three trailing ones is no one."""
        self._from = self._at
        prefix = 32 - self._peek(32).bit_length()
        if prefix > cavlc.MAX_LEVEL_PREFIX:
            if self._at + prefix >= self._end:
                raise self._fault(_CUT)
            raise self._fault("level_prefix is more than 15")
        self._at += prefix + 1
        bits = 12 if prefix == 15 else 4 if prefix == 14 and not suffix_length else suffix_length
        suffix = self._peek(bits) if bits else 0
        self._skip(bits)
        code = (prefix << suffix_length) + suffix
        if prefix == 15 and not suffix_length:
            code += 15
        code += 2 * first
        return -(code + 1 >> 1) if code & 1 else code + 2 >> 1

    def _total_zeros(self, total: int, size: int) -> int:
        row = total - 1 + (15 if size == 4 else 0)
        zeros = self._code(cavlc.TOTAL_ZEROS_TABLE, row, "total_zeros")
        if total + zeros > size:
            raise self._fault("total_zeros leaves the block")
        return zeros
