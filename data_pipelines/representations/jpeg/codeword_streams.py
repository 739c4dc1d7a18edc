"""JPEG streams <-> letters of the alphabet of code words (see `codewords`), for any bytes.

Reading. The bytes between two markers are an entropy-coded segment. The automaton over bits
(`automaton`) runs through all segments, four bits at a time. Its states give the bit positions at
which codes begin, and numpy reads the codes there from tables, all at once. A segment becomes code
words if codes and amplitudes fill it up to at most seven one-bits. Otherwise it becomes its bytes,
byte stuffing included. So does the whole rest of a scan from the first marker that is neither
RST0-7 nor EOI, and a stream whose header is not the one of the settings. Therefore `write` gives
any bytes back from their letters.

Writing. Letters append their bits to the segment. A marker, a byte, a header or the end of the
letters first fills the last byte up with ones. FF is stuffed in what was written as bits, and only
there. So any letters, in any order, give some bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from typing import Any

import numpy as np

from data_pipelines.representations.jpeg import codewords
from data_pipelines.representations.jpeg.automaton import START, Automaton, automaton
from data_pipelines.representations.jpeg.codewords import (
    AC,
    DC,
    EOI_CODE,
    FIRST_PART,
    HEADER,
    JOINED_BITS,
    MARKER,
    RST0,
    Alphabet,
)
from data_pipelines.representations.jpeg.format import Header, JpegFormat
from data_pipelines.representations.jpeg.huffman import EOB

# After a scan: no marker of a file looks like this, and its FF never pairs with the last byte.
_SENTINEL = b"\xff\x01"
_RESET = 16  # takes the place of four bits at a marker
_WINDOW = 64


@dataclasses.dataclass(frozen=True)
class Streams:
    """Reads and writes streams of fixed settings.

    Attributes:
      settings: of the encoder.
      strip: what the stream leaves out of the header: "none", "tables" or "header".
      size: (width, height) of every image; None where each states its own.
    """

    settings: JpegFormat
    strip: str
    size: tuple[int, int] | None

    @property
    def alphabet(self) -> Alphabet:
        """The letters."""
        return codewords.alphabet(self.settings)

    @property
    def header(self) -> Header:
        """What stands before the scan."""
        return self.settings.header(self.strip)

    @functools.cached_property
    def header_parts(self) -> tuple[bytes, ...]:
        """The bytes of the header's letters: none, one, or two with a size between them."""
        header = self.header
        if not header.data:
            return ()
        if self.size is not None:
            return (header.at(*self.size),)
        return header.data[: header.size_at], header.data[header.size_at + 4 :]

    def header_letters(self, size: tuple[int, int]) -> list[int]:
        """The letters of the header of an image of this size."""
        parts = self.header_parts
        if len(parts) < 2:
            return [self.alphabet.header] * len(parts)
        at = self.header.size_at
        stated = self.header.at(*size)[at : at + 4]
        return [self.alphabet.header, *stated, self.alphabet.header_end]

    @functools.cached_property
    def has_meaning(self) -> np.ndarray:
        """Which letters stand for bytes in these streams, bool [letters]."""
        known = np.ones(len(self.alphabet), bool)
        known[self.alphabet.header : self.alphabet.header_end + 1] = [
            part < len(self.header_parts) for part in range(2)
        ]
        return known

    def read(self, stream: bytes) -> np.ndarray:
        """Any bytes -> letters, uint16 [n]; `write` gives the same bytes back."""
        size = self.size or self.header.size(stream)
        if size is None or not stream.startswith(self.header.at(*size)):
            return np.frombuffer(stream, np.uint8).astype(np.uint16)
        head = np.array(self.header_letters(size), np.uint16)
        scan = stream[len(self.header.data) :]
        return np.concatenate([head, _read_scan(scan, _tables(self.settings))])

    def write(self, letters: np.ndarray) -> bytes:
        """Letters, integer [n] in range(len(alphabet)) -> bytes."""
        return _write(letters, self.alphabet.letters, self.header_parts)


# Reading


@dataclasses.dataclass(frozen=True, eq=False)
class _Tables:
    """Tables for reading scans.

    Attributes:
      alphabet: the letters.
      start: row of the automaton's first state. A row is a list: the rows that follow each four
        bits, the first row (at `_RESET`) and the number of the row's state.
      begins: by 16 * state + four bits: at each of them, 1 + the index in `codes` of the table
        whose code begins there, or 0; four uint8 as one uint32 [states * 16 + 16].
      codes: by table and the next 16 bits: letter << 9 | amplitude bits << 5 | code bits, or 0 for
        an undefined code, int32 [tables * 65536].
    """

    alphabet: Alphabet
    start: list[Any]
    begins: np.ndarray
    codes: np.ndarray


@functools.lru_cache(maxsize=8)
def _tables(settings: JpegFormat) -> _Tables:
    machine, alphabet = automaton(settings), codewords.alphabet(settings)
    following = (machine.nibbles >> 5).reshape(-1, 16)
    rows: list[list[Any]] = [[] for _ in range(machine.states)]
    for state, nexts in enumerate(following.tolist()):
        rows[state].extend([rows[after] for after in nexts])
        rows[state] += [rows[START], state]
    begin = _code_begins(machine, settings)
    states, nibble = np.divmod(np.arange(16 * machine.states), 16)
    begins = np.zeros((16 * machine.states + 16, 4), np.uint8)
    for place in range(4):
        begins[: len(states), place] = begin[states]
        states = machine.bits[states, nibble >> (3 - place) & 1]
    return _Tables(alphabet, rows[START], begins.view(np.uint32).ravel(), _codes(alphabet))


def _code_begins(machine: Automaton, settings: JpegFormat) -> np.ndarray:
    """1 + index of the table (DC, AC of luma, DC, AC of chroma) whose code begins at each state."""
    begins = np.zeros(machine.states, np.uint8)
    alphabet = codewords.alphabet(settings)
    dc_state = START
    for index in codewords.block_table_indices(settings):
        dc, ac = alphabet.tables[index]
        begins[dc_state] = 2 * index + 1
        first = _after_codes(machine, np.array([dc_state]), dc.codes, dc=True)
        eob = {EOB: ac.codes[EOB]}
        next_dc = int(_after_codes(machine, first[:1], eob)[0])
        found = frontier = np.unique(first)
        while len(frontier):
            after = np.unique(_after_codes(machine, frontier, ac.codes))
            frontier = np.setdiff1d(after[(after >= START) & (after != next_dc)], found)
            found = np.union1d(found, frontier)
        begins[found] = 2 * index + 2
        dc_state = next_dc
    return begins


def _after_codes(
    machine: Automaton, states: np.ndarray, codes: dict[int, tuple[int, int]], dc: bool = False
) -> np.ndarray:
    """The states after each code and some amplitude of its size, int32 [states * codes]."""
    bits = {
        symbol: (code << (symbol if dc else symbol & 15), length + (symbol if dc else symbol & 15))
        for symbol, (code, length) in codes.items()
    }
    value, length = np.array(list(bits.values()), np.int64).T
    now = np.repeat(states[:, None], len(value), axis=1)
    for place in range(int(length.max())):
        bit = value >> np.maximum(length - 1 - place, 0) & 1
        now = np.where(place < length, machine.bits[now, bit], now)
    return now.ravel()


def _codes(alphabet: Alphabet) -> np.ndarray:
    letters = alphabet.letters
    codes = np.zeros((2 * len(alphabet.tables), 1 << 16), np.int32)
    for index, pair in enumerate(alphabet.tables):
        for which, (kind, table) in enumerate(zip((DC, AC), pair, strict=True)):
            for symbol, (code, length) in table.codes.items():
                mine = (letters.kind == kind) & (letters.table == index)
                letter = int(np.argmax(mine & (letters.symbol == symbol)))
                size = symbol if kind == DC else symbol & 15
                first = code << 16 - length
                entry = letter << 9 | size << 5 | length
                codes[2 * index + which, first : first + (1 << 16 - length)] = entry
    # Markers come after the last table.
    return np.append(codes.ravel(), np.zeros(1 << 16, np.int32))


def _read_scan(scan: bytes, tables: _Tables) -> np.ndarray:
    """Any bytes after the header -> letters, uint16 [n]."""
    raw = np.frombuffer(scan + _SENTINEL, np.uint8)
    ff = np.flatnonzero(raw == 0xFF)
    after_ff = raw[ff + 1]
    stuffing = ff[after_ff == 0] + 1
    markers, code = ff[after_ff != 0], after_ff[after_ff != 0]
    regular = ((code & 0xF8) == RST0) | (code == EOI_CODE)
    count = int(np.argmin(regular))  # the sentinel is not regular
    end = int(markers[count])
    markers, code = markers[: count + 1], code[:count]
    stuffing = stuffing[: np.searchsorted(stuffing, end)]

    # One byte for each byte of the segments, without stuffing, and one for each marker.
    keep = np.ones(end + 1, bool)
    keep[stuffing] = False
    keep[markers[:-1]] = False
    data = raw[: end + 1][keep]
    marker_at = markers - np.searchsorted(stuffing, markers) - np.arange(count + 1)
    letters, ends, fails = _read_segments(data, marker_at, code, tables)
    if not len(fails) and end == len(scan):
        return letters
    parts = []
    done = 0
    for segment in fails.tolist():
        first = int(ends[segment - 1]) if segment else 0
        last = int(ends[segment]) - (segment < count)  # the letter of its marker stays
        begin = int(markers[segment - 1]) + 2 if segment else 0
        parts += [letters[done:first], raw[begin : int(markers[segment])].astype(np.uint16)]
        done = last
    parts += [letters[done:], raw[end : len(scan)].astype(np.uint16)]
    return np.concatenate(parts)


def _read_segments(
    data: np.ndarray, marker_at: np.ndarray, code: np.ndarray, tables: _Tables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Letters of segments, each ended by one byte in the place of its marker.

    Args:
      data: uint8.
      marker_at: places of the markers in it, the last being its last byte.
      code: second bytes of the markers but the last, which stands for the end.

    Returns:
      (letters, uint16 [n], those of failed segments being arbitrary; the number of letters up to
      the end of each segment with its marker, [segments]; indices of the failed segments).
    """
    nibbles = np.empty(2 * len(data), np.uint8)
    np.right_shift(data, 4, out=nibbles[0::2])
    np.bitwise_and(data, 15, out=nibbles[1::2])
    nibbles[2 * marker_at] = _RESET
    nibbles[2 * marker_at + 1] = _RESET
    rows = itertools.accumulate(nibbles.tobytes(), operator.getitem, initial=tables.start)  # type: ignore[arg-type]
    state = np.fromiter(map(operator.itemgetter(17), rows), np.int32, len(nibbles))
    begins = tables.begins[(state << 4) + nibbles]
    begins[2 * marker_at] = 0
    begins[2 * marker_at + 1] = 0
    table_at = begins.view(np.uint8)
    table_at[8 * marker_at] = 2 * len(tables.alphabet.tables) + 1

    at = np.flatnonzero(table_at)
    table = table_at[at].astype(np.int32) - 1
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = data
    windows = np.ndarray((len(data),), ">u8", padded.data, strides=(1,))
    window = windows[at >> 3].astype(np.uint64) << (at & 7).astype(np.uint64)
    entry = tables.codes[(table << 16) + (window >> np.uint64(48)).astype(np.int32)]
    bits, size, letter = entry & 31, entry >> 5 & 15, entry >> 9
    amplitude = (window << bits.astype(np.uint64)) >> np.uint64(_WINDOW - 11)
    amplitude = amplitude.astype(np.int32) >> np.maximum(11 - size, 0)
    joined = size <= JOINED_BITS
    letter += np.where(joined, amplitude, 0)

    # The last code of each segment ends with it, or is padding.
    marker = np.searchsorted(at, 8 * marker_at)
    count = 1 + ~joined + (size > 8)
    count[marker[-1]] = 0
    letter[marker[:-1]] = tables.alphabet.restart + np.minimum(code & 15, 8).astype(np.int32)
    last = marker - 1
    some = last > np.concatenate([[-1], marker[:-1]])
    last = np.maximum(last, 0)
    left = at[marker] - at[last]
    whole = bits[last] + size[last] == left
    ones = (window[last] >> np.uint64(_WINDOW - 8)).astype(np.int32) >> np.maximum(8 - left, 0)
    padding = ~whole & (left < 8) & (ones == (1 << np.minimum(left, 8)) - 1)
    count[last[some & padding]] = 0
    failed = some & ~whole & ~padding | (state[2 * marker_at] < START)

    ends = np.cumsum(count)
    letters = np.empty(int(ends[-1]), np.uint16)
    begin = ends - count
    kept = count > 0
    letters[begin[kept]] = letter[kept]
    long = np.flatnonzero(~joined & kept)
    if len(long):
        size, amplitude, begin = size[long], amplitude[long], begin[long] + 1
        second = size - _FIRST_BITS[size]
        letters[begin] = _AMPLITUDE_LETTERS[_FIRST_BITS[size]] + (amplitude >> second)
        two = second > 0
        low = amplitude & (1 << second) - 1
        letters[begin[two] + 1] = (_AMPLITUDE_LETTERS[second] + low)[two]
    return letters, ends[marker], np.flatnonzero(failed)


# By amplitude bits: those in the first word; the letter of so many zero bits.
_FIRST_BITS = np.array([FIRST_PART.get(bits, bits) for bits in range(16)])
_AMPLITUDE_LETTERS = np.array(
    [Alphabet(()).amplitude(bits) if bits >= 4 else 0 for bits in range(9)]
)


# Writing


def _write(letters: np.ndarray, meaning: codewords.Letters, headers: tuple[bytes, ...]) -> bytes:
    """Letters -> bytes, as described at the top of this file."""
    letters = np.asarray(letters, np.int64)
    if not len(letters):
        return b""
    kind, length = meaning.kind[letters], meaning.length[letters]
    value = meaning.value[letters]
    is_bits = length > 0
    # Bytes that a letter gives by itself, after the bits before it.
    own = np.select(
        [is_bits, kind == MARKER, kind == HEADER],
        [0, 2, np.array([len(part) for part in headers] + [0] * (2 - len(headers)))[value & 1]],
        1,
    )
    # Bit positions: runs of bits are filled up to whole bytes.
    ends_run = is_bits & ~np.append(is_bits[1:], False)
    total = np.cumsum(np.where(is_bits, length, 0))
    run_total = total[ends_run]
    run_bits = np.diff(run_total, prepend=0)
    padding = np.zeros(len(letters), np.int64)
    padding[ends_run] = -run_bits % 8
    sizes = np.where(is_bits, length, 8 * own) + padding
    ends = np.cumsum(sizes)
    begin = ends - sizes

    bits = np.ones(int(ends[-1]), np.uint8)
    counts = length[is_bits]
    index = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    shift = np.repeat(counts - 1, counts) - index
    bits[np.repeat(begin[is_bits], counts) + index] = np.repeat(value[is_bits], counts) >> shift & 1
    data = np.packbits(bits)
    raw = np.zeros(len(data), bool)

    single = (begin >> 3)[(own == 1) & (kind != HEADER)]
    data[single] = value[(own == 1) & (kind != HEADER)]
    marker = (begin >> 3)[kind == MARKER]
    data[marker + 1] = value[kind == MARKER]  # its first byte is ones already
    raw[single] = raw[marker] = raw[marker + 1] = True
    for place in np.flatnonzero(kind == HEADER).tolist():
        part = headers[value[place]] if value[place] < len(headers) else b""
        first = int(begin[place]) >> 3
        data[first : first + len(part)] = np.frombuffer(part, np.uint8)
        raw[first : first + len(part)] = True
    stuffed = np.flatnonzero((data == 0xFF) & ~raw)
    return np.insert(data, stuffed + 1, 0).tobytes()
