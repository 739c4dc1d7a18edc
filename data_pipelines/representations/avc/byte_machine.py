"""The byte machine of H.264 streams: which bytes may come next, and the min bytes to the end.

It generates the streams that `validity` accepts: start codes, parameter sets, NAL unit and slice
headers, slices in order, numbered frames, emulation prevention, stop bits. Macroblocks are
unconstrained: CAVLC is not parsed, so a stream that the machine accepts may hold a macroblock that
decoders reject.

The preamble of a slice is everything before its macroblocks: (before an IDR picture) parameter
sets, start code, NAL unit header and slice header. It is determined by the index of the slice in
its picture and by the picture's type, so preambles are rows of a table: bytes, and a mask of the
bits that are fixed. In the preamble of a picture's first slice the type is not known yet: the state
holds the types that are still possible, and a byte is allowed if it fits one of them.
"""

from __future__ import annotations

import enum
import functools
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.avc.bitstream import IDR, SLICE, I, P, SliceHeader, slice_header
from data_pipelines.representations.avc.encoder import MAX_REFERENCES, REF_IDC, AvcFormat
from data_pipelines.representations.base import UNREACHABLE, Array


class Kind(enum.IntEnum):
    """The type of a picture."""

    IDR = 0
    I = 1  # noqa: E741
    P = 2


class Phase(enum.IntEnum):
    """The part of the slice that the next byte belongs to."""

    PREAMBLE = 0
    DATA = 1
    WRONG = 2  # no valid stream begins with these bytes


class State(NamedTuple):
    """The state of the machine, int32 arrays of one shape.

    Attributes:
      phase: a `Phase`.
      kinds: the possible types of the current picture, as bits.
      offset: number of bytes of the preamble so far.
      zeros: number of bytes 00 directly before, 0 to 2.
      can_end: 1 if the slice could end before these zeros: its last byte has a stop bit after data.
      escaped: 1 if the previous byte is the 03 of emulation prevention.
      no_data: 1 if the previous byte ends the slice header, so that there is no data yet.
      slice: index of the slice in its picture.
      frame: number of pictures before this one.
      number: pictures since the last IDR picture, including this one unless it is IDR.
      idr: idr_pic_id of the next IDR picture, which may be this one.
    """

    phase: Array
    kinds: Array
    offset: Array
    zeros: Array
    can_end: Array
    escaped: Array
    no_data: Array
    slice: Array
    frame: Array
    number: Array
    idr: Array


class AvcMachine(NamedTuple):
    """The byte machine of one format. Its fields are arrays and numbers: it is a pytree.

    The `key` of a picture distinguishes the preambles of one type: by `number` (see `_key`), or by
    `idr` for IDR pictures.

    Attributes:
      preambles: bytes of the preambles, 0 where a bit is free, int32 [slices, kinds, keys, length].
      fixed: mask of the bits that are not free, of the same shape.
      lengths: bytes of the preambles, including a last byte in part, int32 [slices, kinds, keys].
      min_slice: min bytes of each slice including its preamble, int32 [slices, kinds, keys].
      min_after_slice: min bytes of the slices after each one in its picture, of the same shape.
      min_pictures: min bytes of a number of pictures, int32 [min_frames + 1, number of the first of
        them from 1 to _STEADY, idr].
      slices: slices of a picture.
      min_frames, max_frames: bounds on the pictures of a stream.
    """

    preambles: Array
    fixed: Array
    lengths: Array
    min_slice: Array
    min_after_slice: Array
    min_pictures: Array
    slices: int
    min_frames: int
    max_frames: int

    def start(self) -> State:
        """The state before the first byte, of int32 scalars."""
        state = dict.fromkeys(State._fields, 0) | {"kinds": 1 << Kind.IDR}
        return State(**{name: np.int32(value) for name, value in state.items()})

    def step(self, state: State, byte: Array) -> State:
        """The state after one more byte, int32, 0-255; shapes are broadcast."""
        xp = byte.__array_namespace__()
        # 00 00 00 or 00 00 01 in a slice begins the next preamble, of which two bytes have come.
        closes = (state.phase == Phase.DATA) & (state.zeros == 2) & (byte < 2)
        data = self._step_data(state, byte, xp)
        begun = _where(closes, self._begin_next(state, xp), state, xp)
        preamble = self._step_preamble(begun, byte, xp)
        after = _where(closes | (state.phase == Phase.PREAMBLE), preamble, data, xp)
        wrong = (state.phase == Phase.WRONG) | (closes & (state.can_end == 0))
        return after._replace(phase=xp.where(wrong, int(Phase.WRONG), after.phase))

    def min_bytes_to_end(self, state: State) -> Array:
        """Min bytes to the end of the stream, int32: 0 at the end; `UNREACHABLE` if there is none.

        Some allowed byte always reduces it by at least 1.
        """
        xp = state.phase.__array_namespace__()
        preamble = UNREACHABLE + 0 * state.phase
        for kind in Kind:
            possible = (state.kinds >> kind & 1) == 1
            here = self._row(self.min_slice, kind, state, xp) - state.offset
            preamble = xp.where(
                possible, xp.minimum(preamble, here + self._after(kind, state, xp)), preamble
            )
        tail = 0 * state.phase
        for kind in Kind:
            tail = xp.where((state.kinds >> kind & 1) == 1, self._after(kind, state, xp), tail)
        # Zeros at the end of a slice are the first ones of the next start code. The last slice must
        # not end in zeros: another byte of data has to follow.
        closed = xp.where(tail == 0, state.zeros > 0, tail - state.zeros)
        data = xp.where(state.can_end == 1, closed, tail + 1)
        here = xp.where(state.phase == Phase.PREAMBLE, preamble, data)
        return xp.where(state.phase == Phase.WRONG, UNREACHABLE, here)

    def min_bytes_after(self, state_Bx1: State) -> Array:
        """`min_bytes_to_end` after each of the 256 bytes, int32 [B, 256]."""
        xp = state_Bx1.phase.__array_namespace__()
        return self.min_bytes_to_end(self.step(state_Bx1, xp.arange(256, dtype=xp.int32)))

    def _step_preamble(self, state: State, byte: Array, xp: Any) -> State:
        """Keeps the types of picture whose preamble has this byte next."""
        kinds = 0 * state.kinds + 0 * byte
        ended, free = kinds, kinds
        offset = (xp.minimum(state.offset, self.preambles.shape[-1] - 1),)
        for kind in Kind:
            fixed = self._row(self.fixed, kind, state, xp, offset)
            fits = (byte & fixed) == self._row(self.preambles, kind, state, xp, offset)
            fits = fits & ((state.kinds >> kind & 1) == 1)
            kinds = kinds | fits << int(kind)
            ends = fits & (self._row(self.lengths, kind, state, xp) == state.offset + 1)
            ended = xp.where(ends, 1, ended)
            free = xp.where(ends, 255 - fixed, free)
        # Headers form a prefix code: if one ends here, its type is the only one possible.
        phase = xp.where(ended == 1, int(Phase.DATA), int(Phase.PREAMBLE))
        data, top = byte & free, free + 1 >> 1  # the free bits, and a mask of the first of them
        return state._replace(
            phase=xp.where(kinds == 0, int(Phase.WRONG), phase),
            kinds=kinds,
            offset=state.offset + 1 + 0 * byte,
            zeros=xp.where(byte == 0, xp.minimum(state.zeros + 1, 2), 0),
            can_end=xp.where((ended == 1) & (data != 0) & (data != top), 1, 0),
            escaped=0 * kinds,
            no_data=xp.where((ended == 1) & (free == 0), 1, 0),
        )

    def _step_data(self, state: State, byte: Array, xp: Any) -> State:
        """In macroblocks: any byte that emulation prevention allows."""
        escapes = (state.zeros == 2) & (byte == 3)
        wrong = (state.zeros == 2) & (byte < 3) | (state.escaped == 1) & (byte > 3)
        can_end = xp.where(byte == 0, state.can_end, 1)
        can_end = xp.where((state.no_data == 1) & (byte == 0x80), 0, can_end)
        none = 0 * can_end
        return State(
            phase=xp.where(wrong, int(Phase.WRONG), int(Phase.DATA)) + none,
            kinds=state.kinds + none,
            offset=state.offset + none,
            zeros=xp.where(byte == 0, state.zeros + 1, none),
            can_end=xp.where(escapes, 0, can_end),
            escaped=xp.where(escapes, 1, none),
            no_data=none,
            slice=state.slice + none,
            frame=state.frame + none,
            number=state.number + none,
            idr=state.idr + none,
        )

    def _begin_next(self, state: State, xp: Any) -> State:
        """The state in the preamble of the next slice, after its first two bytes 00 00."""
        same = state.slice + 1 < self.slices
        frame = state.frame + xp.where(same, 0, 1)
        was_idr = state.kinds == 1 << Kind.IDR
        number = xp.where(was_idr, 1, state.number + 1)
        every = (1 << len(Kind)) - 1
        kinds = xp.where(frame < self.max_frames, every, 0)
        return state._replace(
            phase=0 * state.phase + int(Phase.PREAMBLE),
            kinds=xp.where(same, state.kinds, kinds),
            offset=0 * state.offset + 2,
            slice=xp.where(same, state.slice + 1, 0),
            frame=frame,
            number=xp.where(same, state.number, number),
            idr=xp.where(same | ~was_idr, state.idr, 1 - state.idr),
        )

    def _after(self, kind: Kind, state: State, xp: Any) -> Array:
        """Min bytes of the stream after the current slice, in a picture of this type."""
        number = 1 if kind == Kind.IDR else xp.minimum(state.number + 1, _STEADY)
        idr = 1 - state.idr if kind == Kind.IDR else state.idr
        frames = xp.clip(self.min_frames - state.frame - 1, 0, None)
        pictures = xp.asarray(self.min_pictures)[frames, number - 1, idr]
        return self._row(self.min_after_slice, kind, state, xp) + pictures

    def _row(
        self, table: Array, kind: Kind, state: State, xp: Any, offset: tuple[Array, ...] = ()
    ) -> Array:
        """The entry of a table for the current slice, in a picture of this type."""
        key = state.idr if kind == Kind.IDR else _key(state.number, self.lengths.shape[2], xp)
        return xp.asarray(table)[(state.slice, int(kind), key, *offset)]


_STEADY = MAX_REFERENCES  # from this number on, the preambles of a type have equal lengths


def _key(number: Array, keys: int, xp: Any) -> Array:
    """The key of non-IDR pictures: the number, above `_STEADY` modulo the count of frame_nums."""
    return xp.where(number < _STEADY, number, _STEADY + (number - _STEADY) % (keys - _STEADY))


@functools.lru_cache(maxsize=8)
def make_machine(
    settings: AvcFormat, *, headers: bool, min_frames: int, max_frames: int
) -> AvcMachine:
    """The byte machine of streams of these settings.

    Args:
      settings: of the encoder.
      headers: True if parameter sets precede every IDR picture, False if there are none.
      min_frames, max_frames: bounds on the frames of a whole stream.

    Raises:
      ValueError: frames so large that a header may need emulation prevention.
    """
    preambles = _preambles(settings, headers)
    shape = preambles.shape
    bits = np.vectorize(lambda preamble: preamble[1], otypes=[np.int32])(preambles)
    lengths = -(-bits // 8)
    # A slice needs a bit of data and a stop bit: in the preamble's last byte if two bits are free.
    free = 8 * lengths - bits
    min_slice = lengths + (free < 2)
    min_after_slice = min_slice[::-1].cumsum(axis=0)[::-1] - min_slice
    table, fixed = np.zeros((2, *shape, int(lengths.max())), np.int32)
    for index, (value, count) in np.ndenumerate(preambles):  # type: ignore[misc]
        size = -(-count // 8)
        table[index][:size] = list((value << 8 * size - count).to_bytes(size, "big"))
        fixed[index][:size] = 255
        fixed[index][size - 1] = 255 & -1 << 8 * size - count
    return AvcMachine(
        preambles=table,
        fixed=fixed,
        lengths=lengths,
        min_slice=min_slice,
        min_after_slice=min_after_slice,
        min_pictures=_min_pictures(min_slice.sum(axis=0), min_frames),
        slices=shape[0],
        min_frames=min_frames,
        max_frames=max_frames,
    )


def _preambles(settings: AvcFormat, headers: bool) -> np.ndarray:
    """The preamble of each slice, type and key: (value, bits), object [slices, kinds, keys]."""
    constants = settings.constants
    counts = 1 << constants.sps.frame_num_bits
    preambles = np.empty((settings.slices, len(Kind), _STEADY + counts), object)
    for index, kind, key in np.ndindex(preambles.shape):
        first_mb = index * settings.slice_mbs
        # Keys above 1, which no IDR picture has, get the preamble of key 1.
        idr_pic_id = min(key, 1) if kind == Kind.IDR else -1
        nal_type = IDR if kind == Kind.IDR else SLICE
        slice_type = P if kind == Kind.P else I
        header = SliceHeader(
            nal_type=nal_type,
            ref_idc=REF_IDC[nal_type],
            first_mb=first_mb,
            slice_type=slice_type,
            frame_num=0 if kind == Kind.IDR else key % counts,
            idr_pic_id=idr_pic_id,
            num_ref_idx=max(1, min(key, MAX_REFERENCES)) if kind == Kind.P else 0,
            qp=constants.qps[slice_type],
            deblocking=constants.deblocking[slice_type],
        )
        value, bits = slice_header(header, constants.sps, constants.pps)
        if b"\0\0" in (value >> bits % 8).to_bytes(bits // 8, "big"):
            raise ValueError(
                f"frames of {settings.mbs:,} macroblocks have slice headers that need emulation "
                "prevention, which the constraint does not support; sample without --constrain"
            )
        start = b"\0\0\0\1" if index == 0 and kind != Kind.IDR else b"\0\0\1"
        if index == 0 and kind == Kind.IDR and headers:
            start = constants.prefix + start
        preambles[index, kind, key] = (
            int.from_bytes(start, "big") << bits | value,
            8 * len(start) + bits,
        )
    return preambles


def _min_pictures(picture: np.ndarray, min_frames: int) -> np.ndarray:
    """`AvcMachine.min_pictures`. picture: min bytes of a picture, int [kinds, keys]."""
    total = np.zeros((min_frames + 1, _STEADY, 2), np.int32)
    for count, index, idr in np.ndindex(min_frames, *total.shape[1:]):
        number = index + 1
        rest = total[count, min(number, _STEADY - 1), idr]
        choices = [picture[kind, number] + rest for kind in (Kind.I, Kind.P)]
        choices.append(picture[Kind.IDR, idr] + total[count, 0, 1 - idr])
        total[count + 1, index, idr] = min(choices)
    return total


def _where(choose: Array, new: State, old: State, xp: Any) -> State:
    return State(*(xp.where(choose, a, b) for a, b in zip(new, old, strict=True)))
