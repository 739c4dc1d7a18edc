"""Walking runs of entropy-coded bytes through the automaton, many at a time.

A *segment* is the bytes between two markers, byte stuffing removed. Segments know nothing of each other,
so they walk in step, one byte of each at a time; the few longest ones finish alone, for a numpy
call is dear for a handful of values.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np

from data_pipelines.representations.jpeg.automaton import START, Automaton, Reject

_FEW = 16  # segments; fewer than this walk one by one


class Fault(enum.IntEnum):
    """What can be wrong with the bits of a segment."""

    UNDEFINED_CODE = Reject.UNDEFINED_CODE
    PAST_END = Reject.PAST_END
    ZEROS_BEFORE_EOB = Reject.ZEROS_BEFORE_EOB
    PADDING = 3


class Segments(NamedTuple):
    """Segments to walk. All but `data` [segments].

    Attributes:
      data: the bytes of all segments, uint8.
      start: place of the first byte in `data`.
      length: number of bytes.
      mcus: MCUs that the segment should hold, at least 1.
    """

    data: np.ndarray
    start: np.ndarray
    length: np.ndarray
    mcus: np.ndarray


class Stops(NamedTuple):
    """Where segments fail. All int64 [segments].

    Attributes:
      byte: place in the segment of the byte that is wrong, or after which it is: too long or too
        short. 0 for an empty segment, -1 for a segment without damage.
      state: of the automaton before that byte.
      left: MCUs not yet ended before that byte.
    """

    byte: np.ndarray
    state: np.ndarray
    left: np.ndarray

    def set(self, segments: np.ndarray, byte: object, state: object, left: object) -> None:
        """Notes a stop of some segments."""
        self.byte[segments], self.state[segments], self.left[segments] = byte, state, left


def run(segments: Segments, machine: Automaton) -> Stops:
    """Walks segments and finds where each one first fails."""
    order = np.argsort(-segments.length, kind="stable")  # those still walking are then the first
    walk = _Walk(
        machine,
        Segments(
            segments.data, segments.start[order], segments.length[order], segments.mcus[order]
        ),
        state=np.full(len(order), START, np.int32),
        left=segments.mcus[order].astype(np.int32),
        stops=Stops(*(np.full(len(order), fill, np.int64) for fill in (-1, START, 0))),
    )
    _walk_to_last_byte(walk)
    _walk_last_byte(walk)
    stops = Stops(*(np.empty_like(column) for column in walk.stops))
    stops.set(order, *walk.stops)
    return stops


def examine(machine: Automaton, state: int, left: int, byte: int) -> tuple[int, int, Fault | None]:
    """Walks one byte bit by bit, up to the first wrong bit or through the byte.

    Returns (bits before the last MCU ended, else 8; MCUs left; what is wrong, if anything).
    """
    end = 0 if left == 0 else 8
    for place in range(8):
        bit = byte >> (7 - place) & 1
        if left == 0:
            if not bit:
                return end, left, Fault.PADDING
            continue
        left -= int(machine.ends[state, bit])
        state = int(machine.bits[state, bit])
        if state < START:
            return end, left, Fault(state)
        if left == 0:
            end = place + 1
    return end, left, None


def whole_bytes(machine: Automaton, segment: bytes, mcus: int) -> int:
    """Number of leading bytes of a segment that hold nothing but its first MCUs.

    Raises ValueError if it does not have so many.
    """
    at, state, left, _ = _walk_alone(machine, segment, 0, START, mcus)
    end = 0
    if segment:
        # The last wanted MCU ends inside this byte; what follows it there is of no concern.
        end, left, _ = examine(machine, state, left, segment[at])
    if left > 0:
        raise ValueError(f"{left} of {mcus} MCUs are not there")
    return at + (end == 8)


class _Walk(NamedTuple):
    machine: Automaton
    segments: Segments  # longest first
    state: np.ndarray
    left: np.ndarray
    stops: Stops


def _walk_to_last_byte(walk: _Walk) -> None:
    """Takes every segment to its last byte, where its last MCU has to end, or to where it fails."""
    machine, (data, start, length, _), state, left, stops = walk
    shortest_first = length[::-1]
    longest = int(length[0]) if len(length) else 0
    for t in range(longest - 1):
        # The segments in which this is not the last byte.
        n = len(length) - int(np.searchsorted(shortest_first, t + 1, side="right"))
        if n < _FEW:
            _finish_alone(walk, t, n)
            return
        byte = data[start[:n] + t]
        before, left_before = state[:n].copy(), left[:n].copy()
        ended = _step_nibble(machine, state[:n], byte >> 4)
        ended += _step_nibble(machine, state[:n], byte & 15)
        left[:n] -= ended
        failed = np.flatnonzero((state[:n] < Reject.DEAD) | (left[:n] <= 0))
        if len(failed):
            stops.set(failed, t, before[failed], left_before[failed])
            state[failed], left[failed] = Reject.DEAD, 1


def _step_nibble(machine: Automaton, state: np.ndarray, nibble: np.ndarray) -> np.ndarray:
    """Takes states four bits on, in place. Returns the number of MCUs that ended, [segments]."""
    step = machine.nibbles.take((state << 4) + nibble)
    np.right_shift(step, 5, out=state)
    step &= 31
    return step


def _finish_alone(walk: _Walk, t: int, n: int) -> None:
    """Takes the first n segments from byte t on, one after the other."""
    machine, (data, start, length, _), state, left, stops = walk
    for i in range(n):
        if state[i] == Reject.DEAD:
            continue
        segment = data[start[i] : start[i] + length[i]].tobytes()
        at, now, remaining, failed = _walk_alone(machine, segment, t, int(state[i]), int(left[i]))
        state[i], left[i] = now, remaining
        if failed:
            stops.set(i, at, now, remaining)  # type: ignore[arg-type]
            state[i] = Reject.DEAD


def _walk_alone(
    machine: Automaton, segment: bytes, t: int, state: int, left: int
) -> tuple[int, int, int, bool]:
    """One segment from byte t up to its last byte.

    Returns (byte, state and MCUs left before it, whether it is wrong).
    """
    table = machine.nibbles.data
    for at in range(t, len(segment) - 1):
        high = table[state << 4 | segment[at] >> 4]
        low = table[high >> 5 << 4 | segment[at] & 15]
        now, remaining = low >> 5, left - (high & 31) - (low & 31)
        if now < START or remaining <= 0:
            return at, state, left, True
        state, left = now, remaining
    return len(segment) - 1, state, left, False


def _walk_last_byte(walk: _Walk) -> None:
    """The last byte of each segment, bit by bit: its last MCU ends inside it, and ones fill it up."""
    machine, (data, start, length, _), state, left, stops = walk
    alive = np.flatnonzero((state != Reject.DEAD) & (length > 0))
    now, remaining = state[alive], left[alive]
    byte = data[start[alive] + length[alive] - 1]
    wrong = np.zeros(len(alive), bool)
    bits, ends = machine.bits.ravel(), machine.ends.ravel()
    for shift in range(7, -1, -1):
        bit = byte >> shift & 1
        padding = remaining == 0
        wrong |= padding & (bit == 0)
        place = 2 * now + bit
        remaining -= ends.take(place) & ~padding
        now = np.where(padding, now, bits.take(place))
    failed = alive[np.flatnonzero(wrong | (remaining > 0))]
    stops.set(failed, length[failed] - 1, state[failed], left[failed])
    empty = np.flatnonzero(length == 0)
    stops.set(empty, 0, START, left[empty])
