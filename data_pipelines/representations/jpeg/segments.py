"""Runs many entropy-coded segments through the automaton of `automaton.py` at once.

An entropy-coded segment (T.81, B.1.1.5) is the data of one restart interval: the bytes between two
markers, here with byte stuffing removed. `validity` cuts scans into segments and calls `run`.

Segments are independent, so they advance together, one byte of each per numpy call. Once fewer
than `MIN_BATCH` remain, each of them is finished alone in Python, which is then faster.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np

from data_pipelines.representations.jpeg.automaton import START, Automaton, Reject

MIN_BATCH = 16  # segments; fewer than this are processed one at a time


class Fault(enum.IntEnum):
    """What can be wrong with the bits of a segment."""

    UNDEFINED_CODE = Reject.UNDEFINED_CODE
    PAST_END = Reject.PAST_END
    ZEROS_BEFORE_EOB = Reject.ZEROS_BEFORE_EOB
    PADDING = 3


class Segments(NamedTuple):
    """Entropy-coded segments. All fields but `data` have the shape [segments].

    Attributes:
      data: the bytes of all segments without stuffing, uint8.
      start: offset of the segment's first byte in `data`.
      length: number of bytes.
      mcus: MCUs that the segment should hold, at least 1.
    """

    data: np.ndarray
    start: np.ndarray
    length: np.ndarray
    mcus: np.ndarray


class Failures(NamedTuple):
    """Where each segment fails. All fields are int64 [segments].

    Attributes:
      byte: offset in the segment of the first byte that is wrong. The last byte, where the segment
        is too long or too short; 0 for an empty segment; -1 for a segment without a fault.
      state: state of the automaton before that byte.
      left: MCUs not yet complete before that byte.
    """

    byte: np.ndarray
    state: np.ndarray
    left: np.ndarray

    def set(self, segments: np.ndarray, byte: object, state: object, left: object) -> None:
        """Records the failures of some segments."""
        self.byte[segments], self.state[segments], self.left[segments] = byte, state, left


def run(segments: Segments, machine: Automaton) -> Failures:
    """Runs all segments through the automaton and returns where each one first fails."""
    order = np.argsort(-segments.length, kind="stable")  # the unfinished ones then come first
    progress = _Progress(
        machine,
        Segments(
            segments.data, segments.start[order], segments.length[order], segments.mcus[order]
        ),
        state=np.full(len(order), START, np.int32),
        left=segments.mcus[order].astype(np.int32),
        failures=Failures(*(np.full(len(order), fill, np.int64) for fill in (-1, START, 0))),
    )
    _run_to_last_byte(progress)
    _run_last_byte(progress)
    failures = Failures(*(np.empty_like(column) for column in progress.failures))
    failures.set(order, *progress.failures)
    return failures


def examine(machine: Automaton, state: int, left: int, byte: int) -> tuple[int, int, Fault | None]:
    """Runs one byte bit by bit, up to the first wrong bit or through the whole byte.

    Args:
      machine: the automaton.
      state: its state before the byte.
      left: MCUs of the segment not yet complete before the byte.
      byte: 0-255.

    Returns:
      (bits up to the end of the segment's last MCU, or 8 if that MCU does not end in this byte;
      MCUs left; the fault, if any).
    """
    end = 0 if left == 0 else 8
    for index in range(8):
        bit = byte >> (7 - index) & 1
        if left == 0:
            if not bit:
                return end, left, Fault.PADDING
            continue
        left -= int(machine.ends[state, bit])
        state = int(machine.bits[state, bit])
        if state < START:
            return end, left, Fault(state)
        if left == 0:
            end = index + 1
    return end, left, None


def whole_bytes(machine: Automaton, segment: bytes, mcus: int) -> int:
    """Number of leading bytes of a segment that hold nothing but its first `mcus` MCUs.

    Raises ValueError if the segment has fewer MCUs.
    """
    at, state, left, _ = _run_alone(machine, segment, 0, START, mcus)
    end = 0
    if segment:
        # The last MCU asked for ends inside this byte; the bits after it are ignored.
        end, left, _ = examine(machine, state, left, segment[at])
    if left > 0:
        raise ValueError(f"{left} of {mcus} MCUs are missing from the segment")
    return at + (end == 8)


class _Progress(NamedTuple):
    machine: Automaton
    segments: Segments  # longest first
    state: np.ndarray
    left: np.ndarray
    failures: Failures


def _run_to_last_byte(progress: _Progress) -> None:
    """Advances every segment to its last byte, in which its last MCU has to end, or to a fault."""
    machine, (data, start, length, _), state, left, failures = progress
    ascending = length[::-1]
    longest = int(length[0]) if len(length) else 0
    for t in range(longest - 1):
        # The segments in which byte t is not the last one.
        n = len(length) - int(np.searchsorted(ascending, t + 1, side="right"))
        if n < MIN_BATCH:
            _finish_alone(progress, t, n)
            return
        byte = data[start[:n] + t]
        before, left_before = state[:n].copy(), left[:n].copy()
        ended = _step_nibble(machine, state[:n], byte >> 4)
        ended += _step_nibble(machine, state[:n], byte & 15)
        left[:n] -= ended
        failed = np.flatnonzero((state[:n] < Reject.DEAD) | (left[:n] <= 0))
        if len(failed):
            failures.set(failed, t, before[failed], left_before[failed])
            state[failed], left[failed] = Reject.DEAD, 1


def _step_nibble(machine: Automaton, state: np.ndarray, nibble: np.ndarray) -> np.ndarray:
    """Advances states by four bits, in place. Returns how many MCUs ended, [segments]."""
    step = machine.nibbles.take((state << 4) + nibble)
    np.right_shift(step, 5, out=state)
    step &= 31
    return step


def _finish_alone(progress: _Progress, t: int, n: int) -> None:
    """Advances the first n segments from byte t to their last byte, one segment at a time."""
    machine, (data, start, length, _), state, left, failures = progress
    for i in range(n):
        if state[i] == Reject.DEAD:
            continue
        segment = data[start[i] : start[i] + length[i]].tobytes()
        at, now, remaining, failed = _run_alone(machine, segment, t, int(state[i]), int(left[i]))
        state[i], left[i] = now, remaining
        if failed:
            failures.set(i, at, now, remaining)  # type: ignore[arg-type]
            state[i] = Reject.DEAD


def _run_alone(
    machine: Automaton, segment: bytes, t: int, state: int, left: int
) -> tuple[int, int, int, bool]:
    """Advances one segment from byte t to its last byte.

    Returns (offset of the byte reached, state and MCUs left before it, whether it is wrong).
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


def _run_last_byte(progress: _Progress) -> None:
    """Runs the last byte of each segment bit by bit: its last MCU ends there, then padding."""
    machine, (data, start, length, _), state, left, failures = progress
    alive = np.flatnonzero((state != Reject.DEAD) & (length > 0))
    now, remaining = state[alive], left[alive]
    byte = data[start[alive] + length[alive] - 1]
    wrong = np.zeros(len(alive), bool)
    bits, ends = machine.bits.ravel(), machine.ends.ravel()
    for shift in range(7, -1, -1):
        bit = byte >> shift & 1
        padding = remaining == 0
        wrong |= padding & (bit == 0)
        entry = 2 * now + bit
        remaining -= ends.take(entry) & ~padding
        now = np.where(padding, now, bits.take(entry))
    failed = alive[np.flatnonzero(wrong | (remaining > 0))]
    failures.set(failed, length[failed] - 1, state[failed], left[failed])
    empty = np.flatnonzero(length == 0)
    failures.set(empty, 0, START, left[empty])
