"""The syntax of an H.264 stream above its macroblocks: NAL units, parameter sets, slice headers.

Source: ITU-T H.264 (08/2021), 7.3 and 7.4 (syntax, semantics), 9.1 (Exp-Golomb codes), Annex B
(byte stream). Only the syntax that baseline encoders write is parsed; other values raise
`SyntaxFault` with the name of the syntax element. All other modules of this package use this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

SLICE, IDR, SEI, SPS, PPS = 1, 5, 6, 7, 8
P, I = 0, 2  # slice_type modulo 5  # noqa: E741

# Enough bytes of a NAL unit to hold its slice header for all values of its fields.
_HEADER_BYTES = 48
_START = re.compile(b"\x00\x00\x01")
_FORBIDDEN = re.compile(rb"\x00\x00[\x00\x02]|\x00\x00\x03[^\x00-\x03]")


class SyntaxFault(ValueError):
    """Bits that no encoder of these settings writes; the message has the reason, not the offset."""


class Nal(NamedTuple):
    """One NAL unit of a byte stream.

    Attributes:
      start: offset of its start code, including a zero_byte (00) before 00 00 01.
      payload: offset of the NAL unit's first byte, its header.
      end: offset after its last byte.
    """

    start: int
    payload: int
    end: int

    @property
    def code(self) -> int:
        """Length of the start code in bytes: 3 or 4."""
        return self.payload - self.start


def nals(stream: bytes) -> Iterator[Nal]:
    """The NAL units of a stream, in order; bytes before the first start code are ignored."""
    starts = [match.start() for match in _START.finditer(stream)]
    limit = 0  # zeros before it belong to the previous start code
    for index, at in enumerate(starts):
        start = at - 1 if at > limit and stream[at - 1] == 0 else at
        limit = at + 3
        end = len(stream)
        if index + 1 < len(starts):
            end = starts[index + 1]
            if end > limit and stream[end - 1] == 0:
                end -= 1
        yield Nal(start, at + 3, end)


def check_bytes(nal: bytes) -> None:
    """Checks emulation prevention and the end of a NAL unit (7.4.1). Raises SyntaxFault."""
    if not nal:
        raise SyntaxFault("an empty NAL unit")
    if nal[0] & 0x80:
        raise SyntaxFault("forbidden_zero_bit is set")
    if found := _FORBIDDEN.search(nal):
        raise SyntaxFault(
            f"{found.group().hex(' ')} inside a NAL unit, which emulation prevention rules out"
        )
    if nal[-1] == 0 or nal.endswith(b"\x00\x00\x03"):
        raise SyntaxFault(f"a NAL unit ends in {nal[-1]:02x} after zeros, expected a stop bit")


class Bits:
    """Reads the leading bits of a NAL unit after its first byte, without emulation prevention."""

    def __init__(self, nal: bytes, limit: int = _HEADER_BYTES):
        data = unescaped(nal[1 : 1 + limit])
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def u(self, count: int) -> int:
        """An unsigned integer of `count` bits."""
        self._left -= count
        if self._left < 0:
            raise SyntaxFault("the NAL unit ends within its header")
        return (self._value >> self._left) & ((1 << count) - 1)

    def ue(self) -> int:
        """An unsigned Exp-Golomb code (9.1)."""
        rest = self._value & ((1 << self._left) - 1)
        zeros = self._left - rest.bit_length()
        if not rest or zeros > 31:
            raise SyntaxFault("an Exp-Golomb code of more than 32 zeros, or cut short")
        self._left -= zeros
        return self.u(zeros + 1) - 1

    def se(self) -> int:
        """A signed Exp-Golomb code (9.1.1)."""
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -code // 2


def unescaped(data: bytes) -> bytes:
    """Removes emulation prevention bytes: each 03 after two zeros (7.3.1)."""
    return data.replace(b"\x00\x00\x03", b"\x00\x00")


class Sps(NamedTuple):
    """The fields of a sequence parameter set (7.3.2.1) used here; sizes in pixels, cropped."""

    profile: int
    constrained: bool  # constraint_set1_flag: with profile 66, Constrained Baseline
    level: int
    frame_num_bits: int
    poc_type: int
    num_ref_frames: int
    width: int
    height: int


class Pps(NamedTuple):
    """The fields of a picture parameter set (7.3.2.2) used here."""

    cabac: bool
    num_ref_idx: int
    weighted: bool
    init_qp: int
    deblocking_control: bool


class SliceHeader(NamedTuple):
    """A slice header (7.3.3) of a baseline stream of frames, `poc_type` 2."""

    nal_type: int
    ref_idc: int
    first_mb: int
    slice_type: int  # modulo 5
    frame_num: int
    idr_pic_id: int  # -1 outside an IDR picture
    num_ref_idx: int
    qp: int
    deblocking: tuple[int, ...]  # disable_deblocking_filter_idc, then both offsets unless it is 1


def parse_sps(nal: bytes) -> Sps:
    """Parses an SPS NAL unit. Raises SyntaxFault unless it is baseline with frames only."""
    bits = Bits(nal, limit=len(nal))
    profile, constraints, level = bits.u(8), bits.u(8), bits.u(8)
    if profile != 66:
        raise SyntaxFault(f"profile_idc {profile}, expected 66 (baseline)")
    bits.ue()
    frame_num_bits, poc_type = bits.ue() + 4, bits.ue()
    if poc_type != 2:
        raise SyntaxFault(f"pic_order_cnt_type {poc_type}, expected 2 (no reordering)")
    num_ref_frames = bits.ue()
    bits.u(1)
    columns, rows = bits.ue() + 1, bits.ue() + 1
    if not bits.u(1):
        raise SyntaxFault("frame_mbs_only_flag is 0, expected frames only")
    bits.u(1)
    left, right, top, bottom = [bits.ue() for _ in range(4)] if bits.u(1) else [0] * 4
    return Sps(
        profile,
        bool(constraints & 0x40),
        level,
        frame_num_bits,
        poc_type,
        num_ref_frames,
        16 * columns - 2 * (left + right),
        16 * rows - 2 * (top + bottom),
    )


def parse_pps(nal: bytes) -> Pps:
    """Parses a PPS NAL unit. Raises SyntaxFault for values that x264's baseline does not write."""
    bits = Bits(nal, limit=len(nal))
    bits.ue(), bits.ue()
    cabac = bool(bits.u(1))
    bits.u(1)
    if bits.ue():
        raise SyntaxFault("more than one slice group, expected one")
    num_ref_idx = bits.ue() + 1
    bits.ue()
    weighted = bool(bits.u(1))
    bits.u(2)
    init_qp = 26 + bits.se()
    bits.se(), bits.se()
    control = bool(bits.u(1))
    bits.u(1)
    if bits.u(1):
        raise SyntaxFault("redundant_pic_cnt_present_flag is 1, expected 0")
    return Pps(cabac, num_ref_idx, weighted, init_qp, control)


def parse_slice(nal: bytes, sps: Sps, pps: Pps) -> SliceHeader:
    """Parses the header of a slice NAL unit. Raises SyntaxFault for values that are not allowed."""
    bits = Bits(nal)
    nal_type, ref_idc = nal[0] & 31, nal[0] >> 5
    first_mb, slice_type = bits.ue(), bits.ue()
    if slice_type not in (P, I, P + 5, I + 5):
        raise SyntaxFault(f"slice_type {slice_type}, expected P (0, 5) or I (2, 7)")
    slice_type %= 5
    if parameter_set := bits.ue():
        raise SyntaxFault(f"pic_parameter_set_id {parameter_set}, expected 0")
    frame_num = bits.u(sps.frame_num_bits)
    idr_pic_id = bits.ue() if nal_type == IDR else -1
    num_ref_idx = _references(bits, pps) if slice_type == P else 0
    if ref_idc:
        _marking(bits, nal_type)
    qp = pps.init_qp + bits.se()
    if not 0 <= qp <= 51:
        raise SyntaxFault(f"a slice QP of {qp}, expected 0 to 51")
    deblocking = _deblocking(bits) if pps.deblocking_control else ()
    bits.u(1)  # at least the stop bit has to follow
    return SliceHeader(
        nal_type, ref_idc, first_mb, slice_type, frame_num, idr_pic_id, num_ref_idx, qp, deblocking
    )


def slice_header(header: SliceHeader, sps: Sps, pps: Pps) -> tuple[int, int]:
    """The bits of a slice header as x264 writes it: (value, count), from the NAL's first byte on.

    x264 declares all slices of a picture to be of one type (slice_type + 5), changes neither the
    order nor the marking of references, and writes their number if it differs from the PPS's.
    """
    codes = [(header.ref_idc << 5 | header.nal_type, 8)]
    codes += [_ue(header.first_mb), _ue(header.slice_type + 5), _ue(0)]
    codes.append((header.frame_num, sps.frame_num_bits))
    if header.nal_type == IDR:
        codes.append(_ue(header.idr_pic_id))
    if header.slice_type == P:
        override = header.num_ref_idx != pps.num_ref_idx
        codes += [(1, 1), _ue(header.num_ref_idx - 1)] if override else [(0, 1)]
        codes.append((0, 1))
    if header.ref_idc:
        codes.append((0, 2) if header.nal_type == IDR else (0, 1))
    codes.append(_se(header.qp - pps.init_qp))
    if pps.deblocking_control:
        codes += [_ue(header.deblocking[0]), *map(_se, header.deblocking[1:])]
    value, count = 0, 0
    for code, bits in codes:
        value, count = value << bits | code, count + bits
    return value, count


def check_slice(nal: bytes, header: tuple[int, int]) -> bytes:
    """Checks that a slice NAL unit begins with these header bits and has data before its stop bit.

    Args:
      nal: the NAL unit from its first byte on.
      header: (value, count) of the header's bits, as `slice_header` returns them.

    Returns:
      The NAL unit without emulation prevention bytes.

    Raises:
      SyntaxFault: other header bits, or no data.
    """
    data = unescaped(nal)
    value, count = header
    size = -(-count // 8)
    if int.from_bytes(data[:size].ljust(size, b"\0"), "big") >> 8 * size - count != value:
        raise SyntaxFault("a slice header with the expected values in other bits than x264's")
    stop = 8 * len(data) - (data[-1] & -data[-1]).bit_length()
    if stop <= count:
        raise SyntaxFault("a slice without data")
    return data


def _ue(value: int) -> tuple[int, int]:
    """An unsigned Exp-Golomb code (9.1): (value, bits)."""
    return value + 1, 2 * (value + 1).bit_length() - 1


def _se(value: int) -> tuple[int, int]:
    """A signed Exp-Golomb code (9.1.1): (value, bits)."""
    return _ue(2 * value - 1 if value > 0 else -2 * value)


def _references(bits: Bits, pps: Pps) -> int:
    """Reads reference count and list modification of a P slice; returns the reference count."""
    num_ref_idx = bits.ue() + 1 if bits.u(1) else pps.num_ref_idx
    if not 1 <= num_ref_idx <= 32:
        raise SyntaxFault(f"num_ref_idx_l0_active {num_ref_idx}, expected 1 to 32")
    if bits.u(1):
        while (operation := bits.ue()) != 3:
            if operation > 3:
                raise SyntaxFault(f"modification_of_pic_nums_idc {operation}, expected 0 to 3")
            bits.ue()
    return num_ref_idx


def _marking(bits: Bits, nal_type: int) -> None:
    """Reads dec_ref_pic_marking (7.3.3.3)."""
    if nal_type == IDR:
        if bits.u(2):
            raise SyntaxFault("no_output_of_prior_pics or a long-term reference, expected neither")
    elif bits.u(1):
        while (operation := bits.ue()) != 0:
            if operation > 6:
                raise SyntaxFault(f"memory_management_control {operation}, expected 0 to 6")
            for _ in range(0 if operation == 5 else 2 if operation == 3 else 1):
                bits.ue()


def _deblocking(bits: Bits) -> tuple[int, ...]:
    if (disabled := bits.ue()) > 2:
        raise SyntaxFault(f"disable_deblocking_filter_idc {disabled}, expected 0 to 2")
    offsets = () if disabled == 1 else (bits.se(), bits.se())
    for offset in offsets:
        if not -6 <= offset <= 6:
            raise SyntaxFault(f"a deblocking offset of {offset}, expected -6 to 6")
    return (disabled, *offsets)
