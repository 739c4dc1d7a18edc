"""Strict validation of H.264 streams, to the last bit: could the encoder have written them?

Start codes, parameter sets, NAL unit and slice headers, the order of slices, the numbering of
frames, emulation prevention and stop bits are checked here, and the slices are collected. Their
macroblocks are parsed by `macroblocks`, or many slices at a time by `macroblock_batch`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.representations.avc import macroblock_batch, macroblocks
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


class StreamValidity(NamedTuple):
    """The result of validating one stream.

    Attributes:
      frames: whole frames before the first fault.
      starts: offset of each frame that has a first slice: of its start code, or of the parameter
        sets before it.
      error: "" if valid, else the offset and kind of the first fault.
      slices: slices with valid headers, in order.
    """

    frames: int
    starts: list[int]
    error: str
    slices: list[SliceNal]


class SliceNal(NamedTuple):
    """A slice whose header is valid.

    Attributes:
      nal: its offsets in the stream.
      frame: whole frames before it.
      data: of the NAL unit, without emulation prevention bytes.
      start: the bit of `data` at which the slice data begins.
      shape: what the header determines about the slice data.
    """

    nal: Nal
    frame: int
    data: bytes
    start: int
    shape: macroblocks.Slice


def validate_streams(
    streams: Sequence[bytes],
    settings: AvcFormat,
    *,
    headers: bool,
    min_frames: int,
    max_frames: int,
) -> list[StreamValidity]:
    """Validates streams to the last bit; never raises because of their content.

    Args: see `validate_structure`.
    """
    found = [
        validate_structure(
            stream, settings, headers=headers, min_frames=min_frames, max_frames=max_frames
        )
        for stream in streams
    ]
    slices = [(piece.data, piece.start, piece.shape) for each in found for piece in each.slices]
    valid = _are_valid(slices)
    results, offset = [], 0
    for stream, each in zip(streams, found, strict=True):
        own = valid[offset : offset + len(each.slices)]
        offset += len(each.slices)
        # All collected slices lie before the fault that ended the validation of the structure.
        results.append(each if own.all() else _damaged(stream, each, int(own.argmin())))
    return results


def validate_structure(
    stream: bytes, settings: AvcFormat, *, headers: bool, min_frames: int, max_frames: int
) -> StreamValidity:
    """Validates all of a stream but its macroblocks.

    Args:
      stream: from its first start code to its last byte.
      settings: of the encoder.
      headers: True if parameter sets precede every IDR picture, False if there are none.
      min_frames, max_frames: bounds on the frames of a whole document.
    """
    validator = _Validator(settings, headers, max_frames)
    at = 0
    try:
        for nal in nals(stream):
            if nal.start != at:
                raise SyntaxFault("no start code where the previous NAL unit ended")
            validator.take(nal, stream[nal.payload : nal.end])
            at = nal.end
        if at != len(stream) or not stream:
            raise SyntaxFault("no start code")
        validator.end()
    except SyntaxFault as fault:
        return StreamValidity(
            validator.whole, validator.starts, f"byte {at}: {fault}", validator.slices
        )
    error = ""
    if validator.whole < min_frames:
        error = f"byte {at}: the stream ends after {validator.whole} frames, expected {min_frames}"
    return StreamValidity(validator.whole, validator.starts, error, validator.slices)


_MIN_BATCH = 64  # slices; fewer are parsed one by one, as a numpy call costs much for a few
_BATCH_MBS = 1 << 21  # macroblocks parsed at a time, about 40 bytes of memory each


def _are_valid(slices: Sequence[tuple[bytes, int, macroblocks.Slice]]) -> np.ndarray:
    """Whether the data of each slice is valid, bool [n]."""
    if len(slices) >= _MIN_BATCH:
        size = max(_MIN_BATCH, _BATCH_MBS // max(shape.mbs for _, _, shape in slices))
        batches = [slices[start : start + size] for start in range(0, len(slices), size)]
        return np.concatenate(
            [macroblock_batch.are_valid(macroblock_batch.make_batch(each)) for each in batches]
        )
    valid = np.ones(len(slices), bool)
    for index, piece in enumerate(slices):
        try:
            macroblocks.parse(*piece)
        except macroblocks.Fault:
            valid[index] = False
    return valid


def _damaged(stream: bytes, found: StreamValidity, index: int) -> StreamValidity:
    """The result for a stream whose slice `index` is the first with damaged data."""
    nal, frame, data, start, shape = found.slices[index]
    try:
        macroblocks.parse(data, start, shape)
    except macroblocks.Fault as fault:
        byte = (start + fault.bit) // 8
        # Its offset in the stream, with the emulation prevention bytes before it.
        left = stream[nal.payload : nal.end]
        at = -1
        while (at := left.find(b"\0\0\3", at + 1)) >= 0 and at + 2 <= byte:
            byte, at = byte + 1, at + 2
        error = f"byte {nal.payload + byte}, frame {frame}: {fault}"
        starts = [at for at in found.starts if at <= nal.start]
        return StreamValidity(frame, starts, error, found.slices[:index])
    raise AssertionError(f"two parsers of a slice differ: {data.hex()}, {start}, {shape}")


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


class _Validator:
    """Validates a stream one NAL unit at a time."""

    def __init__(self, settings: AvcFormat, headers: bool, max_frames: int):
        self._settings, self._constants = settings, settings.constants
        self._headers, self._max_frames = headers, max_frames
        self._step = settings.slice_mbs or settings.mbs
        self._due = [SPS, PPS] if headers else []  # parameter sets before the next IDR picture
        self._sets_at = -1  # offset of the last parameter sets
        self._first: SliceHeader | None = None  # first slice of the current frame
        self._next_mb = 0  # 0: the frame is whole
        self._since_idr = 0
        self._idr_id = 0
        self.whole = 0
        self.starts: list[int] = []
        self.slices: list[SliceNal] = []

    def take(self, nal: Nal, data: bytes) -> None:
        check_bytes(data)
        nal_type = data[0] & 31
        if nal_type in (SPS, PPS):
            self._take_parameter_set(nal, data, nal_type)
        elif nal_type in (SLICE, IDR):
            self._take_slice(nal, data)
        else:
            raise SyntaxFault(f"a NAL unit of type {nal_type}, expected slices (1, 5)")

    def end(self) -> None:
        if self._next_mb:
            raise SyntaxFault(
                f"the stream ends within a frame, before macroblock {self._next_mb} of "
                f"{self._settings.mbs}"
            )
        if self._headers and not self._due:
            raise SyntaxFault("the stream ends with parameter sets that no picture follows")

    def _take_parameter_set(self, nal: Nal, data: bytes, nal_type: int) -> None:
        if not self._headers:
            raise SyntaxFault(f"a parameter set (type {nal_type}), expected none in the stream")
        if self._next_mb:
            raise SyntaxFault(f"a parameter set within a frame, before macroblock {self._next_mb}")
        if not self._due or self._due[0] != nal_type:
            raise SyntaxFault(f"a parameter set of type {nal_type} out of order")
        expected = self._constants.sps_nal if nal_type == SPS else self._constants.pps_nal
        if data != expected or nal.code != 4:
            raise SyntaxFault(f"a parameter set (type {nal_type}) of other settings")
        if nal_type == SPS:
            self._sets_at = nal.start
        self._due = self._due[1:]

    def _take_slice(self, nal: Nal, data: bytes) -> None:
        if not (nal.code == 3 and self._take_next_of_frame(nal, data)):
            self._take_any_slice(nal, data)
        self._next_mb += self._step
        if self._next_mb >= self._settings.mbs:
            self._next_mb = 0
            self.whole += 1

    def _take_next_of_frame(self, nal: Nal, data: bytes) -> bool:
        """Takes a slice with the header that is expected within a frame; False for another."""
        if not self._next_mb or self._first is None:
            return False
        try:
            self._collect(nal, data, self._first._replace(first_mb=self._next_mb))
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
            expected, found = getattr(self._first, name), getattr(header, name)
            if found != expected:
                raise SyntaxFault(f"{name} {found}, expected {expected}, that of the first slice")

    def _begin_frame(self, nal: Nal, header: SliceHeader) -> None:
        if self.whole == self._max_frames:
            raise SyntaxFault(f"a frame after the {self._max_frames} of a whole document")
        idr = header.nal_type == IDR
        if not idr and not self.whole:
            raise SyntaxFault("a first frame that is not an IDR picture")
        if idr and header.slice_type != I:
            raise SyntaxFault("a P slice in an IDR picture")
        if self._headers and idr == bool(self._due):
            raise SyntaxFault(
                "an IDR picture without its parameter sets"
                if idr
                else "parameter sets before a picture that is not IDR"
            )
        if nal.code != (3 if idr else 4):
            raise SyntaxFault(f"a start code of {nal.code} bytes before a frame")
        self._check_numbering(header, idr)
        self.starts.append(self._sets_at if idr and self._headers else nal.start)
        self._due = [SPS, PPS] if self._headers else []
        self._first = header

    def _check_numbering(self, header: SliceHeader, idr: bool) -> None:
        """Checks frame_num, idr_pic_id and the number of references."""
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
            raise SyntaxFault(f"{header.num_ref_idx} references, expected {references}")
