"""What may follow the bytes of an H.264 stream so far, and how many bytes still have to follow.

The machine here generates what `avc_walk` accepts: start codes, parameter sets, NAL and slice
headers, slices in order and frames numbered, emulation prevention, stop bits. What lies in a
macroblock is free: CAVLC is not walked, so a stream that is right here may still hold a macroblock
that no decoder takes.

All that stands before the macroblocks of a slice, its start code and (before an IDR picture) the
parameter sets among them, is its opening. It follows from the slice's place and from the kind of
its picture, so openings are rows of a table: bytes, and which of their bits are given. While a
picture's first slice is opened its kind is not known yet: the kinds that are still possible are
carried along, and whatever byte fits one of them may come.
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
    """Of a picture."""

    IDR = 0
    I = 1  # noqa: E741
    P = 2


class Phase(enum.IntEnum):
    """Where in a slice the next byte stands."""

    OPENING = 0
    DATA = 1
    WRONG = 2  # no valid stream begins like this


class State(NamedTuple):
    """The state of the machine, int32 arrays of one shape.

    Attributes:
      phase: a `Phase`.
      kinds: the kinds that the picture at hand may have, as bits.
      offset: bytes of the opening that have come.
      zeros: bytes 00 that came last: 0 to 2.
      ends: the slice could end before these: its last byte holds a stop bit behind some data.
      escaped: the byte before is the 03 of emulation prevention.
      fresh: the byte before ends the header, so that no data has come.
      slice: its place in the picture.
      frame: pictures before this one.
      number: pictures since the last IDR picture, this one counted unless it is one.
      idr: idr_pic_id of the next IDR picture, which this one may be.
    """

    phase: Array
    kinds: Array
    offset: Array
    zeros: Array
    ends: Array
    escaped: Array
    fresh: Array
    slice: Array
    frame: Array
    number: Array
    idr: Array


class AvcMachine(NamedTuple):
    """Streams of one format. All fields are arrays or numbers, so it is also a pytree.

    A picture's `key` tells apart the openings of one kind: by `number` (see `_key`), or for IDR
    pictures by `idr`.

    Attributes:
      bytes: of the openings, 0 where a bit is free, int32 [slices, kinds, keys, longest].
      given: bits that are not free, likewise.
      lengths: of the openings, the last byte maybe in part, int32 [slices, kinds, keys].
      least: bytes of the shortest slice, opening and all, int32 [slices, kinds, keys].
      after: bytes of the shortest slices behind each in its picture, likewise.
      ahead: bytes of so many shortest pictures, int32 [least_frames + 1, number of the first of
        them from 1 to _STEADY, idr].
      slices: of a picture.
      least_frames, most_frames: of a stream.
    """

    bytes: Array
    given: Array
    lengths: Array
    least: Array
    after: Array
    ahead: Array
    slices: int
    least_frames: int
    most_frames: int

    def start(self) -> State:
        """Before the first byte; int32 scalars."""
        state = dict.fromkeys(State._fields, 0) | {"kinds": 1 << Kind.IDR}
        return State(**{name: np.int32(value) for name, value in state.items()})

    def step(self, state: State, byte: Array) -> State:
        """The state after one more byte (int32, 0-255), of any shape that broadcasts with it."""
        xp = byte.__array_namespace__()
        # 00 00 00 or 00 00 01 inside a slice begins the next one: two bytes of its opening are in.
        closes = (state.phase == Phase.DATA) & (state.zeros == 2) & (byte < 2)
        data = self._step_data(state, byte, xp)
        opened = _where(closes, self._open_next(state, xp), state, xp)
        opening = self._step_opening(opened, byte, xp)
        after = _where(closes | (state.phase == Phase.OPENING), opening, data, xp)
        wrong = (state.phase == Phase.WRONG) | (closes & (state.ends == 0))
        return after._replace(phase=xp.where(wrong, int(Phase.WRONG), after.phase))

    def min_bytes_to_end(self, state: State) -> Array:
        """Bytes after which a stream can end at the earliest: 0 at its end, int32.

        There is always an allowed byte that makes it at least one less. No stream can follow from
        a state where it is `UNREACHABLE`.
        """
        xp = state.phase.__array_namespace__()
        opening = UNREACHABLE + 0 * state.phase
        for kind in Kind:
            possible = (state.kinds >> kind & 1) == 1
            here = self._row(self.least, kind, state, xp) - state.offset
            opening = xp.where(
                possible, xp.minimum(opening, here + self._behind(kind, state, xp)), opening
            )
        tail = 0 * state.phase
        for kind in Kind:
            tail = xp.where((state.kinds >> kind & 1) == 1, self._behind(kind, state, xp), tail)
        # Zeros at the slice's end are the first of the next one's start code; at the very end there
        # is none, and they must go on.
        closed = xp.where(tail == 0, state.zeros > 0, tail - state.zeros)
        data = xp.where(state.ends == 1, closed, tail + 1)
        here = xp.where(state.phase == Phase.OPENING, opening, data)
        return xp.where(state.phase == Phase.WRONG, UNREACHABLE, here)

    def min_bytes_after(self, state_Bx1: State) -> Array:
        """`min_bytes_to_end` after each of the 256 bytes, int32 [B, 256]."""
        xp = state_Bx1.phase.__array_namespace__()
        return self.min_bytes_to_end(self.step(state_Bx1, xp.arange(256, dtype=xp.int32)))

    def _step_opening(self, state: State, byte: Array, xp: Any) -> State:
        """Keeps the kinds of picture whose opening goes on with this byte."""
        kinds = 0 * state.kinds + 0 * byte
        ended, free = kinds, kinds
        place = (xp.minimum(state.offset, self.bytes.shape[-1] - 1),)
        for kind in Kind:
            given = self._row(self.given, kind, state, xp, place)
            fits = (byte & given) == self._row(self.bytes, kind, state, xp, place)
            fits = fits & ((state.kinds >> kind & 1) == 1)
            kinds = kinds | fits << int(kind)
            ends = fits & (self._row(self.lengths, kind, state, xp) == state.offset + 1)
            ended = xp.where(ends, 1, ended)
            free = xp.where(ends, 255 - given, free)
        # Headers are codes of which none begins another: the one that ended is the only one left.
        phase = xp.where(ended == 1, int(Phase.DATA), int(Phase.OPENING))
        data, top = byte & free, free + 1 >> 1  # the free bits, and the first of them
        return state._replace(
            phase=xp.where(kinds == 0, int(Phase.WRONG), phase),
            kinds=kinds,
            offset=state.offset + 1 + 0 * byte,
            zeros=xp.where(byte == 0, xp.minimum(state.zeros + 1, 2), 0),
            ends=xp.where((ended == 1) & (data != 0) & (data != top), 1, 0),
            escaped=0 * kinds,
            fresh=xp.where((ended == 1) & (free == 0), 1, 0),
        )

    def _step_data(self, state: State, byte: Array, xp: Any) -> State:
        """A byte of macroblocks, or one that emulation prevention asks for."""
        escapes = (state.zeros == 2) & (byte == 3)
        wrong = (state.zeros == 2) & (byte < 3) | (state.escaped == 1) & (byte > 3)
        ends = xp.where(byte == 0, state.ends, 1)
        ends = xp.where((state.fresh == 1) & (byte == 0x80), 0, ends)
        none = 0 * ends
        return State(
            phase=xp.where(wrong, int(Phase.WRONG), int(Phase.DATA)) + none,
            kinds=state.kinds + none,
            offset=state.offset + none,
            zeros=xp.where(byte == 0, state.zeros + 1, none),
            ends=xp.where(escapes, 0, ends),
            escaped=xp.where(escapes, 1, none),
            fresh=none,
            slice=state.slice + none,
            frame=state.frame + none,
            number=state.number + none,
            idr=state.idr + none,
        )

    def _open_next(self, state: State, xp: Any) -> State:
        """The slice behind this one, after 00 00."""
        same = state.slice + 1 < self.slices
        frame = state.frame + xp.where(same, 0, 1)
        was_idr = state.kinds == 1 << Kind.IDR
        number = xp.where(was_idr, 1, state.number + 1)
        every = (1 << len(Kind)) - 1
        kinds = xp.where(frame < self.most_frames, every, 0)
        return state._replace(
            phase=0 * state.phase + int(Phase.OPENING),
            kinds=xp.where(same, state.kinds, kinds),
            offset=0 * state.offset + 2,
            slice=xp.where(same, state.slice + 1, 0),
            frame=frame,
            number=xp.where(same, state.number, number),
            idr=xp.where(same | ~was_idr, state.idr, 1 - state.idr),
        )

    def _behind(self, kind: Kind, state: State, xp: Any) -> Array:
        """Bytes of the shortest slices behind the one at hand, in a picture of this kind."""
        number = 1 if kind == Kind.IDR else xp.minimum(state.number + 1, _STEADY)
        idr = 1 - state.idr if kind == Kind.IDR else state.idr
        frames = xp.clip(self.least_frames - state.frame - 1, 0, None)
        ahead = xp.asarray(self.ahead)[frames, number - 1, idr]
        return self._row(self.after, kind, state, xp) + ahead

    def _row(
        self, table: Array, kind: Kind, state: State, xp: Any, place: tuple[Array, ...] = ()
    ) -> Array:
        """The entry of a table for the slice at hand, in a picture of this kind."""
        key = state.idr if kind == Kind.IDR else _key(state.number, self.bytes.shape[2], xp)
        return xp.asarray(table)[(state.slice, int(kind), key, *place)]


_STEADY = MAX_REFERENCES  # from this number on, pictures have openings of the same length


def _key(number: Array, keys: int, xp: Any) -> Array:
    """The picture's number while that decides its references, then what stands for it."""
    return xp.where(number < _STEADY, number, _STEADY + (number - _STEADY) % (keys - _STEADY))


@functools.lru_cache(maxsize=8)
def machine(settings: AvcFormat, *, headers: bool, least: int, most: int) -> AvcMachine:
    """The machine of streams of these settings.

    Args:
      settings: of the encoder.
      headers: whether parameter sets lie before every IDR picture, or nowhere.
      least, most: frames that a whole stream has.

    Raises:
      ValueError: frames so large that a header may need emulation prevention.
    """
    openings = _openings(settings, headers)
    shape = openings.shape
    bits = np.vectorize(lambda opening: opening[1], otypes=[np.int32])(openings)
    lengths = -(-bits // 8)
    # A slice holds a bit of data and a stop bit, in the opening's last byte where two are free.
    free = 8 * lengths - bits
    shortest = lengths + (free < 2)
    after = shortest[::-1].cumsum(axis=0)[::-1] - shortest
    longest = int(lengths.max())
    table, given = np.zeros((2, *shape, longest), np.int32)
    for place, (value, count) in np.ndenumerate(openings):  # type: ignore[misc]
        size = -(-count // 8)
        table[place][:size] = list((value << 8 * size - count).to_bytes(size, "big"))
        given[place][:size] = 255
        given[place][size - 1] = 255 & -1 << 8 * size - count
    return AvcMachine(
        bytes=table,
        given=given,
        lengths=lengths,
        least=shortest,
        after=after,
        ahead=_ahead(shortest.sum(axis=0), least),
        slices=shape[0],
        least_frames=least,
        most_frames=most,
    )


def _openings(settings: AvcFormat, headers: bool) -> np.ndarray:
    """The opening of each slice, kind and key: (value, bits), object [slices, kinds, keys]."""
    constants = settings.constants
    counts = 1 << constants.sps.frame_num_bits
    openings = np.empty((settings.slices, len(Kind), _STEADY + counts), object)
    for place, kind, key in np.ndindex(openings.shape):
        first_mb = place * settings.slice_mbs
        # A key that no IDR picture has is given the opening of one that there is.
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
                "prevention, which is not provided for; sample without --constrain"
            )
        start = b"\0\0\0\1" if place == 0 and kind != Kind.IDR else b"\0\0\1"
        if place == 0 and kind == Kind.IDR and headers:
            start = constants.prefix + start
        openings[place, kind, key] = (
            int.from_bytes(start, "big") << bits | value,
            8 * len(start) + bits,
        )
    return openings


def _ahead(picture: np.ndarray, least: int) -> np.ndarray:
    """The field `ahead`. picture: bytes of the shortest picture, int [kinds, keys]."""
    ahead = np.zeros((least + 1, _STEADY, 2), np.int32)
    for count, place, idr in np.ndindex(least, *ahead.shape[1:]):
        number = place + 1
        on = ahead[count, min(number, _STEADY - 1), idr]
        ways = [picture[kind, number] + on for kind in (Kind.I, Kind.P)]
        ways.append(picture[Kind.IDR, idr] + ahead[count, 0, 1 - idr])
        ahead[count + 1, place, idr] = min(ways)
    return ahead


def _where(choose: Array, new: State, old: State, xp: Any) -> State:
    return State(*(xp.where(choose, a, b) for a, b in zip(new, old, strict=True)))
