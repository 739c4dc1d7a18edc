"""The byte machine of JPEG streams: which bytes may come next, and the min bytes to the end.

It generates exactly the streams that `validity` accepts, from the same automaton over bits
(`automaton.py`): header, MCUs, padding, byte stuffing, restart markers, EOI. A byte is two lookups
in one table by (state, four bits). The MCUs and restart intervals that are left are counters in the
machine's state. The table has 4.3 MB for 4:2:0 and 0.7 MB for grey. A second table, eight times as
large, has an entry for each byte, so that `min_bytes_after` needs no step for each of the 256.

A byte may come next if the state after it can reach the end of the file within the bytes that are
left. For this each table entry holds the distance of its state from the end of its MCU, in bits, or
`_DEAD` if no valid continuation exists. `jpeglm_jax.generation.constraint` uses the machine.
"""

from __future__ import annotations

import enum
import functools
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.base import UNREACHABLE, Array
from data_pipelines.representations.jpeg.automaton import START, Automaton, automaton
from data_pipelines.representations.jpeg.format import JpegFormat

# A word packs a state of the automaton and its properties:
#   bits 0-6   min bits to the end of its MCU; _DEAD: the end cannot be reached
#   bit 7      an MCU ended within the four bits that led here
#   bit 8      all of these four bits after the MCU's end were ones, as in padding
#   bits 9-    the state
# A row has the same properties for the eight bits of each byte: bits 7-8 count the MCUs that ended,
# bit 9 is set if all bits after the last MCU's end were ones, and there is no state.
_DEAD = 127
_ENDED, _PADDED, _STATE = 7, 8, 9
_PADDED_ROW = 9
_RST0, _EOI = 0xD0, 0xD9


class Phase(enum.IntEnum):
    """The part of the stream that the next byte belongs to."""

    HEADER = 0
    DATA = 1
    STUFFING = 2  # the 00 after an FF of entropy-coded data
    MARKER = 3  # the FF of the marker that ends an entropy-coded segment
    CODE = 4  # the second byte of that marker
    END = 5  # after EOI: no byte may follow
    WRONG = 6  # no valid stream begins with these bytes


class State(NamedTuple):
    """The state of the machine, int32 arrays of one shape.

    Attributes:
      phase: a `Phase`.
      word: of the automaton's state; in the header, the offset there.
      mcus: MCUs of this entropy-coded segment that are not complete.
      segments: number of entropy-coded segments after this one.
    """

    phase: Array
    word: Array
    mcus: Array
    segments: Array


class JpegMachine(NamedTuple):
    """The byte machine of images of one size. Its fields are arrays and numbers: it is a pytree.

    Attributes:
      table: by 16 * state + four bits, the word that they lead to, int32 [states * 16].
      rows: by state and byte, the properties that `min_bytes_after` uses, uint16 [states, 256].
      header: the bytes before the scan, then one unused element, int32 [n + 1].
      first: the word at the beginning of an MCU.
      mcu_bits: min bits of an MCU.
      segments: entropy-coded segments of the image.
      segment_mcus: MCUs of each segment except the last.
      last_mcus: MCUs of the last segment.
    """

    table: Array
    rows: Array
    header: Array
    first: int
    mcu_bits: int
    segments: int
    segment_mcus: int
    last_mcus: int

    def start(self) -> State:
        """The state before the first byte, of int32 scalars."""
        if len(self.header) > 1:
            state = (Phase.HEADER, 0, 0, self.segments)
        else:
            state = (Phase.DATA, self.first, self._mcus_of(self.segments, np), self.segments - 1)
        return State(*(np.int32(value) for value in state))

    def step(self, state: State, byte: Array) -> State:
        """The state after one more byte, int32, 0-255; shapes are broadcast."""
        xp = byte.__array_namespace__()
        in_data = state.phase == Phase.DATA
        data, forced = self._step_data(state, byte, xp), self._step_forced(state, byte, xp)
        return State(*(xp.where(in_data, a, b) for a, b in zip(data, forced, strict=True)))

    def min_bytes_to_end(self, state: State) -> Array:
        """Min bytes to the end of the file, int32; `UNREACHABLE` or more if there is none.

        Some allowed byte always reduces it by at least 1. With the Huffman codes of T.81 Annex K no
        byte of a shortest continuation is FF, so none of them is stuffed.
        """
        xp = state.word.__array_namespace__()
        phase = state.phase
        segment = -(-((state.word & _DEAD) + (state.mcus - 1) * self.mcu_bits) // 8)
        segment = xp.where(state.mcus > 0, segment, 0)
        here = xp.where(phase == Phase.DATA, segment + 2, 0)
        here = xp.where(phase == Phase.STUFFING, segment + 3, here)
        here = xp.where(phase == Phase.MARKER, 2, here)
        here = xp.where(phase == Phase.CODE, 1, here)
        here = xp.where(phase == Phase.HEADER, len(self.header) - 1 - state.word, here)
        here = xp.where(phase == Phase.WRONG, UNREACHABLE, here)
        return here + self._segments_bytes(state.segments, xp)

    def min_bytes_after(self, state_Bx1: State) -> Array:
        """`min_bytes_to_end` after each of the 256 bytes, int32 [B, 256]."""
        phase, word, mcus, segments = state_Bx1
        xp = word.__array_namespace__()
        row_BxN = xp.asarray(self.rows)[(word >> _STATE)[:, 0]].astype(xp.int32)
        byte = xp.arange(256, dtype=xp.int32)
        left = mcus - (row_BxN >> _ENDED & 3)
        distance = row_BxN & _DEAD
        segment = distance + (left - 1) * self.mcu_bits + 7 >> 3
        right = xp.where(left == 0, row_BxN >> _PADDED_ROW & 1, distance != _DEAD)
        right = (left >= 0) & (right == 1)
        data = (
            xp.where(left == 0, 0, segment)
            + (byte == 0xFF)
            + 2
            + self._segments_bytes(segments, xp)
        )
        forced_right = byte == self._forced(state_Bx1, xp)
        right = xp.where(phase == Phase.DATA, right, forced_right)
        after = xp.where(phase == Phase.DATA, data, self.min_bytes_to_end(state_Bx1) - 1)
        return xp.where(right, after, UNREACHABLE)

    def _step_data(self, state: State, byte: Array, xp: Any) -> tuple[Array, ...]:
        """In entropy-coded data: two lookups of four bits; only ones after the last MCU's end."""
        table = xp.asarray(self.table)
        high = table[(state.word >> _STATE) * 16 + (byte >> 4)]
        low = table[(high >> _STATE) * 16 + (byte & 15)]
        left = state.mcus - (high >> _ENDED & 1)
        over = left == 0
        padded = xp.where(over, (high >> _PADDED & 1) * ((byte & 15) == 15), low >> _PADDED & 1)
        left = xp.where(over, 0, left - (low >> _ENDED & 1))
        right = xp.where(left == 0, padded == 1, low & _DEAD != _DEAD)
        phase = xp.where(left == 0, int(Phase.MARKER), int(Phase.DATA))
        phase = xp.where(byte == 0xFF, int(Phase.STUFFING), phase)
        phase = xp.where(right, phase, int(Phase.WRONG))
        return phase, low, left, state.segments

    def _step_forced(self, state: State, byte: Array, xp: Any) -> tuple[Array, ...]:
        """Outside entropy-coded data, where only one byte is possible."""
        phase, word, mcus, segments = state
        in_header = phase == Phase.HEADER
        header_over = in_header & (word == len(self.header) - 2)
        begins = header_over | ((phase == Phase.CODE) & (segments > 0))
        after = xp.where(in_header, int(Phase.HEADER), int(Phase.END))
        after = xp.where(phase == Phase.MARKER, int(Phase.CODE), after)
        stuffed = xp.where(mcus == 0, int(Phase.MARKER), int(Phase.DATA))
        after = xp.where(phase == Phase.STUFFING, stuffed, after)
        after = xp.where(begins, int(Phase.DATA), after)
        after = xp.where(byte == self._forced(state, xp), after, int(Phase.WRONG))
        return (
            after,
            xp.where(begins, self.first, xp.where(in_header, word + 1, word)),
            xp.where(begins, self._mcus_of(segments, xp), mcus),
            xp.where(begins, segments - 1, segments),
        )

    def _forced(self, state: State, xp: Any) -> Array:
        """The only possible byte outside entropy-coded data; -1 if there is none."""
        phase, word, _, segments = state
        in_header = phase == Phase.HEADER
        marker = xp.where(segments == 0, _EOI, _RST0 + (self.segments - 1 - segments) % 8)
        byte = xp.where(in_header, xp.asarray(self.header)[xp.where(in_header, word, 0)], -1)
        byte = xp.where(phase == Phase.STUFFING, 0, byte)
        byte = xp.where(phase == Phase.MARKER, 0xFF, byte)
        return xp.where(phase == Phase.CODE, marker, byte)

    def _mcus_of(self, segments: Array, xp: Any) -> Array:
        """MCUs of the next segment, given how many segments are left including it."""
        return xp.where(segments == 1, self.last_mcus, self.segment_mcus)

    def _segments_bytes(self, segments: Array, xp: Any) -> Array:
        """Min bytes of the last `segments` segments of the file, each with the marker after it."""
        segment, last = (
            -(-mcus * self.mcu_bits // 8) + 2 for mcus in (self.segment_mcus, self.last_mcus)
        )
        return xp.where(segments > 0, (segments - 1) * segment + last, 0)


def make_machine(settings: JpegFormat, header: bytes, size: tuple[int, int]) -> JpegMachine:
    """The byte machine of images of one size.

    Args:
      settings: of the encoder.
      header: the bytes that each stream begins with, for this size.
      size: (width, height) in pixels.
    """
    mcus = settings.geometry(*size).mcus
    interval = settings.restart_interval or mcus
    segments = -(-mcus // interval)
    table, rows, distance = _tables(settings)
    return JpegMachine(
        table=table,
        rows=rows,
        header=np.frombuffer(header + b"\0", np.uint8).astype(np.int32),
        first=START << _STATE | int(distance[START]),
        mcu_bits=int(distance[START]),
        segments=segments,
        segment_mcus=interval,
        last_mcus=mcus - (segments - 1) * interval,
    )


@functools.lru_cache(maxsize=8)
def _tables(settings: JpegFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(`table`; `rows`; min bits from each state to the end of its MCU, int32 [states])."""
    bits = automaton(settings)
    distance = _distances(bits)
    states = np.repeat(np.arange(bits.states, dtype=np.int32), 16)
    nibble = np.tile(np.arange(16), bits.states)
    ended, padded = np.zeros(len(states), bool), np.ones(len(states), bool)
    for shift in (3, 2, 1, 0):
        bit = nibble >> shift & 1
        padded &= (bit == 1) | ~ended
        ended |= bits.ends[states, bit]
        states = bits.bits[states, bit]
    words = states << _STATE | padded << _PADDED | ended << _ENDED | distance[states]
    table = words.astype(np.int32)
    return table, _rows(table), distance


def _rows(table: np.ndarray) -> np.ndarray:
    """Combines two steps of four bits into one of eight, uint16 [states, 256]."""
    words = table.reshape(-1, 16)
    rows = np.empty((len(words), 16, 16), np.uint16)
    for nibble in range(16):
        high = words[:, nibble, None]
        low = words[high[:, 0] >> _STATE]
        ended = (high >> _ENDED & 1) + (low >> _ENDED & 1)
        # Where only the first four bits end an MCU, the other four are padding.
        ones = (high >> _PADDED & 1) * (np.arange(16) == 15)
        padded = np.where(low >> _ENDED & 1, low >> _PADDED & 1, ones)
        rows[:, nibble] = low & _DEAD | ended << _ENDED | padded << _PADDED_ROW
    return rows.reshape(-1, 256)


def _distances(bits: Automaton) -> np.ndarray:
    """Min bits to the end of the MCU, int32 [states]; `_DEAD` where it cannot be reached."""
    distance = np.full(bits.states, _DEAD, np.int32)
    while True:
        after = np.where(bits.ends, 0, distance[bits.bits])
        shorter = np.minimum(after.min(axis=1) + 1, _DEAD)
        shorter[:START] = _DEAD
        if np.array_equal(shorter, distance):
            return distance
        distance = shorter.astype(np.int32)
