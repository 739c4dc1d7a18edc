"""The byte machine of H.264 streams: which bytes may follow, and the minimum bytes to the end.

It generates the streams that `validity.validate_streams` accepts, to the last bit (except raised
QPs: mb_qp_delta is 0 here): start codes, parameter sets, NAL and slice headers, slices in order,
numbered frames, the bits of macroblocks (`macroblock_automaton`), stop bits, emulation prevention.

The preamble of a slice is all that stands before its macroblocks, with its start code and (before
an IDR picture) the parameter sets. It follows from the slice's position and the kind of its
picture, so preambles are rows of a table: bytes, and which of their bits are fixed. During the
preamble of a picture's first slice its kind is not known yet: the kinds still possible are
carried along, and whatever byte fits one of them may come. The bits of the last byte that are not
given are the first of the macroblocks.

A byte of macroblocks is eight steps of the automaton. After two bytes 00 it is more than 3, or the
03 of emulation prevention comes first. What follows that 03 begins with six bits of 0, so they are
stepped at once, and the 03 is possible only where the automaton goes on.

Bytes to the end are those of a way that always exists (see `macroblock_automaton`): nearly the
shortest one, and never less. `min_bytes_after` steps the tree of the beginnings of a byte.
"""

from __future__ import annotations

import collections
import enum
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.avc import macroblocks
from data_pipelines.representations.avc.bitstream import IDR, SLICE, I, P, SliceHeader, slice_header
from data_pipelines.representations.avc.encoder import MAX_REFERENCES, REF_IDC, AvcFormat
from data_pipelines.representations.avc.macroblock_automaton import (
    Automaton,
    Context,
    automaton,
    registers_of,
    repeat,
)
from data_pipelines.representations.base import UNREACHABLE, Array


class Kind(enum.IntEnum):
    """Of a picture."""

    IDR = 0
    I = 1  # noqa: E741
    P = 2


class Phase(enum.IntEnum):
    """Where in a slice the next byte stands."""

    PREAMBLE = 0
    DATA = 1
    ESCAPED = 2  # after the 03 of emulation prevention
    ENDED = 3  # after the slice's last byte
    WRONG = 4  # no valid stream begins like this


_FIELDS = ("phase", "kinds", "offset", "zeros", "slice", "frame", "number", "idr")
_STAGES = (3, 3, 2)  # bits of a byte that `min_bytes_after` tries at a time; six, then two
_FAR = 1 << 24  # bits; a slice from which no valid one follows is farther from its end


@functools.lru_cache(maxsize=64)
def state_of(columns: int) -> Any:
    """The type of the machine's state, int32 arrays of one shape.

    Its attributes are
      phase: a `Phase`.
      kinds: the kinds that the picture at hand may have, as bits.
      offset: bytes of the preamble that have come.
      zeros: bytes 00 that came last: 0 to 2.
      slice: its place in the picture.
      frame: pictures before this one.
      number: pictures since the last IDR picture, this one counted unless it is one.
      idr: idr_pic_id of the next IDR picture, which this one may be.
    and then the registers of `macroblock_automaton.registers_of(columns)`.
    """
    names = [*_FIELDS, *registers_of(columns)._fields]
    return collections.namedtuple("State", names)


class AvcMachine(NamedTuple):
    """Streams of one format. All fields are arrays or numbers, so it is also a pytree.

    A picture's `key` tells apart the preambles of one kind: by `number` (see `_key`), or for IDR
    pictures by `idr`.

    Attributes:
      automaton: of the macroblocks.
      preambles: bytes, 0 where a bit is free, int32 [slices, kinds, keys, longest].
      fixed: bits that are not free, likewise.
      free_bits: how many the low bits are of which a byte has all set, int32 [256].
      lengths: of the preambles, the last byte maybe in part, int32 [slices, kinds, keys].
      min_slice: bytes of a slice on the way to the end, with its preamble, int32 [slices, kinds,
        keys].
      min_after_slice: bytes of the slices behind each in its picture, likewise.
      min_pictures: bytes of so many pictures, int32 [min_frames + 1, number of the first of
        them from 1 to _STEADY, idr].
      slices: of a picture.
      slice_mbs, mbs: macroblocks of a slice and of a picture.
      min_frames, max_frames: of a stream.
    """

    automaton: Automaton
    preambles: Array
    fixed: Array
    free_bits: Array
    lengths: Array
    min_slice: Array
    min_after_slice: Array
    min_pictures: Array
    slices: int
    slice_mbs: int
    mbs: int
    min_frames: int
    max_frames: int

    def start(self) -> Any:
        """Before the first byte; int32 scalars."""
        kind = state_of(len(self.automaton.columns))
        state = dict.fromkeys(kind._fields, 0) | {"kinds": 1 << Kind.IDR}
        return kind(**{name: np.int32(value) for name, value in state.items()})

    def step(self, state: Any, byte: Array) -> Any:
        """The state after one more byte (int32, 0-255), of any shape that broadcasts with it."""
        xp = byte.__array_namespace__()
        ended = state.phase == Phase.ENDED
        # 00 00 00 or 00 00 01 after a slice begins the next one: two bytes of its preamble are in.
        closes = ended & (state.zeros == 2) & (byte < 2)
        state = _where(closes, self._begin_next(state, xp), state, xp)
        preamble = state.phase == Phase.PREAMBLE
        opened, over = self._step_preamble(state, byte, xp)
        state = _where(preamble, opened, state, xp)
        context = self._context(state, xp)
        data, escaped = state.phase == Phase.DATA, state.phase == Phase.ESCAPED
        begins = preamble & (over >= 0)
        escapes = data & (state.zeros == 2) & (byte == 3) & ~begins
        wrong = data & (state.zeros == 2) & (byte < 3) & ~begins | escaped & (byte > 3)
        registers = self._registers(state)
        registers = _where(begins, self.automaton.start(context), registers, xp)

        def one(place: Array, registers: Any) -> Any:
            active = data & ~begins & (~escapes | (place > 1)) | escaped & (place < 2)
            active = active | begins & (place < over)
            stepped = self.automaton.step(registers, byte >> place & 1, context)
            return _where(active, stepped, registers, xp)

        shape = (state.phase + 0 * byte).shape
        registers = type(registers)(*(xp.broadcast_to(field, shape) for field in registers))
        if xp is not np or np.any(data | escaped | begins):
            registers = repeat(one, 8, registers, xp)
        in_data = data | escaped | begins
        done = in_data & ~escapes & (self.automaton.bits_to_end(registers, context) == 0)
        phase = xp.where(in_data, int(Phase.DATA), state.phase)
        phase = xp.where(escapes, int(Phase.ESCAPED), xp.where(done, int(Phase.ENDED), phase))
        more = ended & ~closes
        wrong = wrong | more & ((byte > 0) | (state.zeros > 1))
        zeros = xp.where(byte == 0, xp.minimum(state.zeros + 1, 2), 0)
        return state._replace(
            phase=xp.where(wrong, int(Phase.WRONG), phase),
            kinds=state.kinds + 0 * zeros,
            offset=state.offset + 0 * zeros,
            zeros=zeros,
            slice=state.slice + 0 * zeros,
            frame=state.frame + 0 * zeros,
            number=state.number + 0 * zeros,
            idr=state.idr + 0 * zeros,
            **registers._asdict(),
        )

    def min_bytes_to_end(self, state: Any) -> Array:
        """Bytes after which a stream can end: 0 at its end, int32.

        There is always an allowed byte that makes it at least one less. No stream can follow from
        a state where it is `UNREACHABLE`.
        """
        xp = state.phase.__array_namespace__()
        preamble = UNREACHABLE + 0 * state.phase
        for kind in Kind:
            possible = (state.kinds >> kind & 1) == 1
            preamble = xp.where(
                possible, xp.minimum(preamble, self._ahead(kind, state, xp)), preamble
            )
        tail = self._tail(state, xp)
        bits = self.automaton.bits_to_end(self._registers(state), self._context(state, xp))
        # After two bytes 00, emulation prevention may be needed.
        data = self._data_bytes(bits, xp) + (state.zeros == 2) + tail
        escaped = self._data_bytes(bits + 6, xp) + tail
        here = xp.where(state.phase == Phase.PREAMBLE, preamble, data)
        here = xp.where(state.phase == Phase.ESCAPED, escaped, here)
        here = xp.where(state.phase == Phase.ENDED, self._ended(state, tail, xp), here)
        return xp.where(state.phase == Phase.WRONG, UNREACHABLE, xp.minimum(here, UNREACHABLE))

    def min_bytes_after(self, state_Bx1: Any) -> Array:
        """`min_bytes_to_end` after each of the 256 bytes, int32 [B, 256]."""
        state = state_Bx1
        xp = state.phase.__array_namespace__()
        byte = xp.arange(256, dtype=xp.int32)
        ended = state.phase == Phase.ENDED
        closes = ended & (state.zeros == 2)
        state = _where(closes, self._begin_next(state, xp), state, xp)
        preamble, escaped = state.phase == Phase.PREAMBLE, state.phase == Phase.ESCAPED
        data = state.phase == Phase.DATA
        # Openings: what the bytes of the kinds are, and how far it is after them.
        forced = UNREACHABLE + 0 * byte + 0 * state.phase
        first_free = 0 * state.phase - 1
        given = 0 * state.phase
        expected = given
        for kind in Kind:
            bits, value, over = self._expected(kind, state, xp)
            possible = preamble & ((state.kinds >> kind & 1) == 1)
            fits = possible & (over < 0) & (byte & bits == value)
            ahead = self._ahead(kind, state, xp) - 1
            forced = xp.where(fits, xp.minimum(forced, ahead), forced)
            last = possible & (over >= 0)
            first_free = xp.where(last, over, first_free)
            given, expected = xp.where(last, bits, given), xp.where(last, value, expected)
        begins = first_free >= 0
        context = self._context(state, xp)
        registers = self._registers(state)
        registers = _where(begins, self.automaton.start(context), registers, xp)
        bits, bits_of_03 = self._tree(registers, context, data, escaped, begins, first_free, xp)
        tail = self._tail(state, xp)
        needs = data & (state.zeros == 1) & (byte == 0)  # two bytes 00 then
        free = self._data_bytes(bits, xp) + needs + tail
        two = data & (state.zeros == 2)
        free = xp.where(two & (byte < 3), UNREACHABLE, free)
        free = xp.where(two & (byte == 3), self._data_bytes(bits_of_03 + 6, xp) + tail, free)
        free = xp.where(escaped & (byte > 3), UNREACHABLE, free)
        free = xp.where(begins & (byte & given != expected), UNREACHABLE, free)
        after = xp.where(preamble & ~begins, forced, free)
        again = self._ended(state._replace(zeros=xp.minimum(state.zeros + 1, 2)), tail, xp)
        after = xp.where(ended & ~closes, xp.where(byte == 0, again, UNREACHABLE), after)
        return xp.where(state.phase == Phase.WRONG, UNREACHABLE, xp.minimum(after, UNREACHABLE))

    def _tree(
        self,
        registers: Any,
        context: Context,
        data: Array,
        escaped: Array,
        begins: Array,
        first_free: Array,
        xp: Any,
    ) -> tuple[Array, Array]:
        """Bits to the end after each byte [B, 256], and after six bits of 0 [B, 1]."""
        after_six = registers
        bits = 8
        for count in _STAGES:
            # Of each state one for each way in which so many bits can follow.
            lane = xp.arange(registers.node.shape[1] << count, dtype=xp.int32)
            registers = type(registers)(
                *(xp.repeat(field, 1 << count, axis=1) for field in registers)
            )
            bits -= count

            def one(place: Array, registers: Any, lane: Array = lane, bits: int = bits) -> Any:
                at = place + bits
                active = data | escaped & (at < 2) | begins & (at < first_free)
                children = self.automaton.step(registers, lane >> place & 1, context)
                return _where(active, children, registers, xp)

            registers = repeat(one, count, registers, xp)
            if bits == 2:
                after_six = type(registers)(*(field[:, :1] for field in registers))
        bits_to_end = self.automaton.bits_to_end
        return bits_to_end(registers, context), bits_to_end(after_six, context)

    @staticmethod
    def _data_bytes(bits: Array, xp: Any) -> Array:
        """Bytes of so many bits; `UNREACHABLE` for bits that no slice has."""
        return xp.where(bits >= _FAR, UNREACHABLE, bits + 7 >> 3)

    def _registers(self, state: Any) -> Any:
        return registers_of(len(self.automaton.columns))(*state[len(_FIELDS) :])

    def _context(self, state: Any, xp: Any) -> Context:
        first = state.slice * self.slice_mbs
        mbs = xp.minimum(self.mbs - first, self.slice_mbs)
        inter = state.kinds == 1 << Kind.P
        references = xp.where(inter, xp.clip(state.number, 1, MAX_REFERENCES), 0)
        return Context(first, mbs, references)

    def _tail(self, state: Any, xp: Any) -> Array:
        """Bytes behind the slice at hand."""
        tail = 0 * state.phase
        for kind in Kind:
            tail = xp.where((state.kinds >> kind & 1) == 1, self._behind(kind, state, xp), tail)
        return tail

    def _ended(self, state: Any, tail: Array, xp: Any) -> Array:
        """Bytes after the end of a slice, and after zeros there: the next start code has begun."""
        last = (state.slice + 1 >= self.slices) & (state.frame + 1 >= self.min_frames)
        was_idr = state.kinds == 1 << Kind.IDR
        number = xp.where(was_idr, 1, xp.minimum(state.number + 1, _STEADY))
        idr = xp.where(was_idr, 1 - state.idr, state.idr)
        one_more = xp.asarray(self.min_pictures)[1, number - 1, idr] - state.zeros
        one_more = xp.where(state.frame + 1 < self.max_frames, one_more, UNREACHABLE)
        return xp.where(last, xp.where(state.zeros > 0, one_more, 0), tail - state.zeros)

    def _ahead(self, kind: Kind, state: Any, xp: Any) -> Array:
        """Bytes to the end within a preamble, if the picture is of this kind."""
        return (
            self._row(self.min_slice, kind, state, xp)
            - state.offset
            + self._behind(kind, state, xp)
        )

    def _expected(self, kind: Kind, state: Any, xp: Any) -> tuple[Array, Array, Array]:
        """Of the preamble's next byte: (bits that are given, the byte, bits that are free if it is
        the last one, else -1)."""
        place = (xp.minimum(state.offset, self.preambles.shape[-1] - 1),)
        given = self._row(self.fixed, kind, state, xp, place)
        over = self._row(self.lengths, kind, state, xp) == state.offset + 1
        free = xp.asarray(self.free_bits)[255 - given]
        return given, self._row(self.preambles, kind, state, xp, place), xp.where(over, free, -1)

    def _step_preamble(self, state: Any, byte: Array, xp: Any) -> tuple[Any, Array]:
        """Keeps the kinds of picture whose preamble goes on with this byte.

        Returns the state, and the bits of the byte that belong to the macroblocks; -1 if the
        preamble is not over.
        """
        kinds = 0 * state.kinds + 0 * byte
        free = kinds - 1
        for kind in Kind:
            bits, value, over = self._expected(kind, state, xp)
            fits = (byte & bits == value) & ((state.kinds >> kind & 1) == 1)
            kinds = kinds | fits << int(kind)
            # Headers are codes of which none begins another: the one that ends is the only one.
            free = xp.where(fits & (over >= 0), over, free)
        return state._replace(
            phase=xp.where(kinds == 0, int(Phase.WRONG), int(Phase.PREAMBLE)) + 0 * kinds,
            kinds=kinds,
            offset=state.offset + 1 + 0 * byte,
        ), xp.where(kinds == 0, -1, free)

    def _begin_next(self, state: Any, xp: Any) -> Any:
        """The slice behind this one, after 00 00."""
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

    def _behind(self, kind: Kind, state: Any, xp: Any) -> Array:
        """Bytes of the shortest slices behind the one at hand, in a picture of this kind."""
        number = 1 if kind == Kind.IDR else xp.minimum(state.number + 1, _STEADY)
        idr = 1 - state.idr if kind == Kind.IDR else state.idr
        frames = xp.clip(self.min_frames - state.frame - 1, 0, None)
        ahead = xp.asarray(self.min_pictures)[frames, number - 1, idr]
        return self._row(self.min_after_slice, kind, state, xp) + ahead

    def _row(
        self, table: Array, kind: Kind, state: Any, xp: Any, place: tuple[Array, ...] = ()
    ) -> Array:
        """The entry of a table for the slice at hand, in a picture of this kind."""
        key = state.idr if kind == Kind.IDR else _key(state.number, self.preambles.shape[2], xp)
        return xp.asarray(table)[(state.slice, int(kind), key, *place)]


_STEADY = MAX_REFERENCES  # from this number on, pictures have preambles of the same length


def _key(number: Array, keys: int, xp: Any) -> Array:
    """The picture's number while that decides its references, then what stands for it."""
    return xp.where(number < _STEADY, number, _STEADY + (number - _STEADY) % (keys - _STEADY))


@functools.lru_cache(maxsize=8)
def make_machine(
    settings: AvcFormat, *, headers: bool, min_frames: int, max_frames: int
) -> AvcMachine:
    """The machine of streams of these settings.

    Args:
      settings: of the encoder.
      headers: whether parameter sets lie before every IDR picture, or nowhere.
      min_frames, max_frames: frames that a whole stream has.

    Raises:
      ValueError: frames so large that a header may need emulation prevention.
    """
    preambles = _openings(settings, headers)
    shape = preambles.shape
    bits = np.vectorize(lambda preamble: preamble[1], otypes=[np.int32])(preambles)
    lengths = -(-bits // 8)
    columns, rows = math.ceil(settings.width / 16), math.ceil(settings.height / 16)
    slice_mbs = settings.slice_mbs or settings.mbs
    slices = automaton(columns, settings.mbs, slice_mbs, macroblocks.mvd_bits(columns, rows))
    shortest = -(-(bits + _data_bits(slices, settings)) // 8)
    after = shortest[::-1].cumsum(axis=0)[::-1] - shortest
    longest = int(lengths.max())
    table, given = np.zeros((2, *shape, longest), np.int32)
    for place, (value, count) in np.ndenumerate(preambles):  # type: ignore[misc]
        size = -(-count // 8)
        table[place][:size] = list((value << 8 * size - count).to_bytes(size, "big"))
        given[place][:size] = 255
        given[place][size - 1] = 255 & -1 << 8 * size - count
    return AvcMachine(
        automaton=slices,
        preambles=table,
        fixed=given,
        free_bits=np.array([(~low & low + 1).bit_length() - 1 for low in range(256)], np.int32),
        lengths=lengths,
        min_slice=shortest,
        min_after_slice=after,
        min_pictures=_ahead(shortest.sum(axis=0), min_frames),
        slices=shape[0],
        slice_mbs=slice_mbs,
        mbs=settings.mbs,
        min_frames=min_frames,
        max_frames=max_frames,
    )


def _data_bits(slices: Automaton, settings: AvcFormat) -> np.ndarray:
    """Bits of the macroblocks of each slice on the way to the end, int32 [slices, kinds, keys]."""
    counts = 1 << settings.constants.sps.frame_num_bits
    shape = settings.slices, len(Kind), _STEADY + counts
    place, kind, key = np.indices(shape, np.int32)
    slice_mbs = settings.slice_mbs or settings.mbs
    first = place * np.int32(slice_mbs)
    references = np.where(kind == Kind.P, np.clip(key, 1, MAX_REFERENCES), 0)
    context = Context(first, np.minimum(settings.mbs - first, slice_mbs), references)
    return slices.bits_to_end(slices.start(context), context)


def _openings(settings: AvcFormat, headers: bool) -> np.ndarray:
    """The preamble of each slice, kind and key: (value, bits), object [slices, kinds, keys]."""
    constants = settings.constants
    counts = 1 << constants.sps.frame_num_bits
    preambles = np.empty((settings.slices, len(Kind), _STEADY + counts), object)
    for place, kind, key in np.ndindex(preambles.shape):
        first_mb = place * settings.slice_mbs
        # A key that no IDR picture has is given the preamble of one that there is.
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
        if value & 255 == 0 or b"\0\0" in (value >> bits % 8).to_bytes(bits // 8, "big"):
            raise ValueError(
                f"frames of {settings.mbs:,} macroblocks have slice headers that need emulation "
                "prevention, which is not provided for; sample without --constrain"
            )
        start = b"\0\0\0\1" if place == 0 and kind != Kind.IDR else b"\0\0\1"
        if place == 0 and kind == Kind.IDR and headers:
            start = constants.prefix + start
        preambles[place, kind, key] = (
            int.from_bytes(start, "big") << bits | value,
            8 * len(start) + bits,
        )
    return preambles


def _ahead(picture: np.ndarray, min_frames: int) -> np.ndarray:
    """The field `ahead`. picture: bytes of the shortest picture, int [kinds, keys]."""
    ahead = np.zeros((min_frames + 1, _STEADY, 2), np.int32)
    for count, place, idr in np.ndindex(min_frames, *ahead.shape[1:]):
        number = place + 1
        on = ahead[count, min(number, _STEADY - 1), idr]
        ways = [picture[kind, number] + on for kind in (Kind.I, Kind.P)]
        ways.append(picture[Kind.IDR, idr] + ahead[count, 0, 1 - idr])
        ahead[count + 1, place, idr] = min(ways)
    return ahead


def _where(choose: Array, new: Any, old: Any, xp: Any) -> Any:
    return type(old)(*(xp.where(choose, a, b) for a, b in zip(new, old, strict=True)))
