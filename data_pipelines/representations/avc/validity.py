"""Strict judgement of AVC-LM's streams above their macroblocks: could the encoder have written it?

Walked are start codes, parameter sets, NAL and slice headers, the order and the macroblocks of
slices, the numbering of frames, emulation prevention and stop bits. What lies in a macroblock is
read by `macroblocks`, to the last bit: `walk` collects the slices, `validate` judges all of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.representations.avc import macroblock_lanes, macroblocks
from data_pipelines.representations.avc.bitstream import (
    IDR,
    PPS,
    SLICE,
    SPS,
    I,
    Nal,
    P,
    SliceHeader,
    SyntaxFault,
    check_bytes,
    check_slice,
    nals,
    parse_slice,
    slice_header,
)
from data_pipelines.representations.avc.encoder import MAX_REFERENCES, REF_IDC, AvcFormat


class Walk(NamedTuple):
    """How far a stream is right.

    Attributes:
      frames: whole frames before the first fault.
      starts: where each frame begins that has a first slice: the byte of its start code, or of
        its parameter sets'.
      error: empty, or the place and kind of the first fault.
      slices: with right headers, in order.
    """

    frames: int
    starts: list[int]
    error: str
    slices: list[SliceNal]


class SliceNal(NamedTuple):
    """A slice whose header is right.

    Attributes:
      nal: its place in the stream.
      frame: whole frames before it.
      data: of the NAL unit, emulation prevention undone.
      start: bit of `data` at which the slice data begins.
      shape: what is known of the slice data.
    """

    nal: Nal
    frame: int
    data: bytes
    start: int
    shape: macroblocks.Slice


def walk(stream: bytes, settings: AvcFormat, *, headers: bool, least: int, most: int) -> Walk:
    """Judges a stream.

    Args:
      stream: from its first start code to its last byte.
      settings: of the encoder.
      headers: whether parameter sets lie before every IDR picture, or nowhere.
      least, most: frames that a whole document has.
    """
    walker = _Walker(settings, headers, most)
    at = 0
    try:
        for nal in nals(stream):
            if nal.start != at:
                raise SyntaxFault("no start code where the one before ended")
            walker.take(nal, stream[nal.payload : nal.end])
            at = nal.end
        if at != len(stream) or not stream:
            raise SyntaxFault("no start code")
        walker.end()
    except SyntaxFault as fault:
        return Walk(walker.whole, walker.starts, f"byte {at}: {fault}", walker.slices)
    if walker.whole < least:
        error = f"byte {at}: the stream ends after {walker.whole} frames, expected {least}"
        return Walk(walker.whole, walker.starts, error, walker.slices)
    return Walk(walker.whole, walker.starts, "", walker.slices)


def validate(
    streams: Sequence[bytes], settings: AvcFormat, *, headers: bool, least: int, most: int
) -> list[Walk]:
    """Judges streams to the last bit: what `walk` checks and, of each slice, its macroblocks.

    Args: see `walk`.
    """
    walks = [walk(stream, settings, headers=headers, least=least, most=most) for stream in streams]
    slices = [(piece.data, piece.start, piece.shape) for each in walks for piece in each.slices]
    right = _are_valid(slices)
    judged, at = [], 0
    for stream, each in zip(streams, walks, strict=True):
        here = right[at : at + len(each.slices)]
        at += len(each.slices)
        # All slices lie before the fault that ended the walk.
        judged.append(each if here.all() else _damaged(stream, each, int(here.argmin())))
    return judged


_FEW = 64  # slices; fewer are read one after the other, for a numpy call costs much for a few
_CHUNK_MBS = 1 << 21  # macroblocks read at a time, about 40 bytes each


def _are_valid(slices: Sequence[tuple[bytes, int, macroblocks.Slice]]) -> np.ndarray:
    """Whether each slice is right, bool [n]."""
    if len(slices) >= _FEW:
        chunk = max(_FEW, _CHUNK_MBS // max(shape.mbs for _, _, shape in slices))
        lanes = [slices[at : at + chunk] for at in range(0, len(slices), chunk)]
        judged = [macroblock_lanes.are_valid(macroblock_lanes.lanes(each)) for each in lanes]
        return np.concatenate(judged)
    right = np.ones(len(slices), bool)
    for place, piece in enumerate(slices):
        try:
            macroblocks.parse(*piece)
        except macroblocks.Fault:
            right[place] = False
    return right


def _damaged(stream: bytes, found: Walk, place: int) -> Walk:
    """The walk up to a slice that is damaged."""
    nal, frame, data, start, shape = found.slices[place]
    try:
        macroblocks.parse(data, start, shape)
    except macroblocks.Fault as fault:
        byte = (start + fault.bit) // 8
        # Where that byte lies in the stream: bytes of emulation prevention are passed.
        left = stream[nal.payload : nal.end]
        at = -1
        while (at := left.find(b"\0\0\3", at + 1)) >= 0 and at + 2 <= byte:
            byte, at = byte + 1, at + 2
        error = f"byte {nal.payload + byte}, frame {frame}: {fault}"
        starts = [at for at in found.starts if at <= nal.start]
        return Walk(frame, starts, error, found.slices[:place])
    raise AssertionError(f"two readings of a slice differ: {data.hex()}, {start}, {shape}")


@functools.lru_cache(maxsize=1 << 15)
def _expected(
    header: SliceHeader, settings: AvcFormat
) -> tuple[tuple[int, int], macroblocks.Slice]:
    """The bits of a header, and what it determines about the slice data."""
    constants = settings.constants
    columns, rows = math.ceil(settings.width / 16), math.ceil(settings.height / 16)
    shape = macroblocks.Slice(
        columns,
        header.first_mb,
        min(settings.slice_mbs or settings.mbs, settings.mbs - header.first_mb),
        header.slice_type,
        header.num_ref_idx,
        header.qp,
        macroblocks.mvd_bits(columns, rows),
    )
    return slice_header(header, constants.sps, constants.pps), shape


class _Walker:
    """The state between NAL units."""

    def __init__(self, settings: AvcFormat, headers: bool, most: int):
        self._settings, self._constants = settings, settings.constants
        self._headers, self._most = headers, most
        self._step = settings.slice_mbs or settings.mbs
        self._due = [SPS, PPS] if headers else []  # parameter sets before the next IDR picture
        self._sets_at = -1  # where those begin that came last
        self._first: SliceHeader | None = None  # slice of the frame at hand
        self._next_mb = 0  # 0: the frame is whole
        self._last: SliceHeader | None = None  # first slice of the frame before
        self._since_idr = 0
        self._idr_id = 0
        self.whole = 0
        self.starts: list[int] = []
        self.slices: list[SliceNal] = []

    def take(self, nal: Nal, data: bytes) -> None:
        check_bytes(data)
        kind = data[0] & 31
        if kind in (SPS, PPS):
            self._take_set(nal, data, kind)
        elif kind in (SLICE, IDR):
            self._take_slice(nal, data)
        else:
            raise SyntaxFault(f"a NAL unit of type {kind}, expected slices (1, 5)")

    def end(self) -> None:
        if self._next_mb:
            raise SyntaxFault(
                f"the stream ends within a frame, before macroblock {self._next_mb} of "
                f"{self._settings.mbs}"
            )
        if self._headers and not self._due:
            raise SyntaxFault("the stream ends with parameter sets that no picture follows")

    def _take_set(self, nal: Nal, data: bytes, kind: int) -> None:
        if not self._headers:
            raise SyntaxFault(f"a parameter set (type {kind}) where they are left out")
        if self._next_mb:
            raise SyntaxFault(f"a parameter set within a frame, before macroblock {self._next_mb}")
        if not self._due or self._due[0] != kind:
            raise SyntaxFault(f"a parameter set of type {kind} out of order")
        expected = self._constants.sps_nal if kind == SPS else self._constants.pps_nal
        if data != expected or nal.code != 4:
            raise SyntaxFault(f"a parameter set (type {kind}) that is not these settings' own")
        if kind == SPS:
            self._sets_at = nal.start
        self._due = self._due[1:]

    def _take_slice(self, nal: Nal, data: bytes) -> None:
        if not (nal.code == 3 and self._take_like_the_first(nal, data)):
            self._take_any_slice(nal, data)
        self._next_mb += self._step
        if self._next_mb >= self._settings.mbs:
            self._next_mb = 0
            self.whole += 1

    def _take_like_the_first(self, nal: Nal, data: bytes) -> bool:
        """Takes a slice whose header is the one expected within a frame; False if it is not."""
        if not self._next_mb or self._first is None:
            return False
        header = self._first._replace(first_mb=self._next_mb)
        try:
            self._collect(nal, data, header)
        except SyntaxFault:
            return False
        return True

    def _take_any_slice(self, nal: Nal, data: bytes) -> None:
        header = parse_slice(data, self._constants.sps, self._constants.pps)
        if header.first_mb != self._next_mb:
            raise SyntaxFault(
                f"a slice that begins at macroblock {header.first_mb}, expected {self._next_mb}"
            )
        if header.ref_idc != REF_IDC[header.nal_type]:
            raise SyntaxFault(f"nal_ref_idc {header.ref_idc}, expected {REF_IDC[header.nal_type]}")
        if header.qp != self._constants.qps[header.slice_type]:
            raise SyntaxFault(
                f"a slice QP of {header.qp}, expected {self._constants.qps[header.slice_type]}"
            )
        if header.first_mb:
            self._check_same_frame(nal, header)
        else:
            self._begin_frame(nal, header)
        deblocking = self._constants.deblocking[header.slice_type]
        if header.deblocking != deblocking:
            raise SyntaxFault(f"deblocking {header.deblocking}, expected {deblocking}")
        self._collect(nal, data, header)

    def _collect(self, nal: Nal, data: bytes, header: SliceHeader) -> None:
        """Raises SyntaxFault unless the slice has the bits of this header, and data."""
        bits, shape = _expected(header, self._settings)
        self.slices.append(SliceNal(nal, self.whole, check_slice(data, bits), bits[1], shape))

    def _check_same_frame(self, nal: Nal, header: SliceHeader) -> None:
        assert self._first is not None
        if nal.code != 3:
            raise SyntaxFault("a start code of 4 bytes within a frame, expected 3")
        for name in ("nal_type", "frame_num", "idr_pic_id", "slice_type", "num_ref_idx"):
            ours, theirs = getattr(self._first, name), getattr(header, name)
            if ours != theirs:
                raise SyntaxFault(f"{name} {theirs} in a frame that began with {ours}")

    def _begin_frame(self, nal: Nal, header: SliceHeader) -> None:
        if self.whole == self._most:
            raise SyntaxFault(f"a frame after the {self._most} of a whole document")
        idr = header.nal_type == IDR
        if not idr and not self.whole:
            raise SyntaxFault("a first frame that is no IDR picture")
        if idr and header.slice_type != I:
            raise SyntaxFault("a P slice in an IDR picture")
        if self._headers and idr == bool(self._due):
            raise SyntaxFault(
                "an IDR picture without its parameter sets"
                if idr
                else "parameter sets before a picture that is no IDR"
            )
        if nal.code != (3 if idr else 4):
            raise SyntaxFault(f"a start code of {nal.code} bytes before a frame")
        self._number(header, idr)
        self.starts.append(self._sets_at if idr and self._headers else nal.start)
        self._due = [SPS, PPS] if self._headers else []
        self._first = header

    def _number(self, header: SliceHeader, idr: bool) -> None:
        """frame_num and idr_pic_id, and references that are there."""
        if idr:
            expected, self._since_idr = 0, 0
            if header.idr_pic_id != self._idr_id:
                raise SyntaxFault(f"idr_pic_id {header.idr_pic_id}, expected {self._idr_id}")
            self._idr_id ^= 1
        else:
            self._since_idr += 1
            expected = self._since_idr % (1 << self._constants.sps.frame_num_bits)
        if header.frame_num != expected:
            raise SyntaxFault(f"frame_num {header.frame_num}, expected {expected}")
        references = min(self._since_idr, MAX_REFERENCES)
        if header.slice_type == P and header.num_ref_idx != references:
            raise SyntaxFault(f"{header.num_ref_idx} references where there are {references}")
