"""JPEG streams <-> letters of the alphabet of code words (see `codewords`), for any bytes.

Reading. The bytes between two markers are an entropy-coded segment. A small automaton runs through
all segments byte by byte. Its states give the bit positions at which codes begin, and numpy reads
the codes there from tables, all at once. Where a block may end without EOB the automaton over bits
(`automaton`) does the same exactly. A segment becomes code words if they fill it up to at most
seven one-bits. Otherwise it becomes its bytes, byte stuffing included. So does the whole rest of a
scan from the first marker that is neither RST0-7 nor EOI, and a stream whose header is not the one
of the settings. Therefore `write` gives any bytes back from their letters. With numba installed
`codeword_kernel` does the same, faster.

Writing. Letters append their bits to the segment. A marker, a byte, a header or the end of the
letters first fills the last byte up with ones. FF is stuffed in what was written as bits, and only
there. So any letters, in any order, give some bytes.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import operator
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.codewords import compiled
from data_pipelines.representations.jpeg import codewords
from data_pipelines.representations.jpeg.automaton import START, Automaton, automaton
from data_pipelines.representations.jpeg.codewords import (
    AC,
    DC,
    EOI_CODE,
    FIRST_PART,
    HEADER,
    MARKER,
    RST0,
    Alphabet,
)
from data_pipelines.representations.jpeg.format import Header, JpegFormat
from data_pipelines.representations.jpeg.huffman import EOB

_KERNEL = "data_pipelines.representations.jpeg.codeword_kernel"
# After a scan: no marker of a file looks like this, and its FF never pairs with the last byte.
_SENTINEL = b"\xff\x01"


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

    @functools.cached_property
    def alphabet(self) -> Alphabet:
        """The letters."""
        return codewords.alphabet(self.settings)

    @functools.cached_property
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
        return np.concatenate([head, _read_scan(scan, self._tables, compiled.module(_KERNEL))])

    def leading(self, letters: np.ndarray, mcus: int) -> np.ndarray:
        """The letters of a stream's header and first MCUs, the marker after them included.

        Raises ValueError if the stream is damaged before that place, which a damaged segment is
        from its beginning.
        """
        meaning = self.alphabet.letters
        blocks = len(self.settings.block_components)
        interval = self.settings.restart_interval
        head = len(self.header_letters((1, 1)))
        if not mcus:
            return letters[:head]
        kind = meaning.kind[letters]
        begins = np.flatnonzero(kind == DC)  # each block begins with one
        markers = np.flatnonzero(kind == MARKER)
        if interval:
            markers = markers[: mcus // interval]
        numbers = np.arange(len(markers))
        ordered = (meaning.value[letters[markers]] == RST0 + numbers % 8) & (
            np.searchsorted(begins, markers) == (numbers + 1) * interval * blocks
        )
        # The marker after the last MCU, or the next one's first code.
        if interval and mcus % interval == 0:
            ends = markers[mcus // interval - 1 :] + 1
        else:
            ends = begins[mcus * blocks :]
        whole = len(ends) > 0 and (ordered.all() if interval else True)
        if not whole or (kind[head : int(ends[0])] == codewords.BYTE).any():
            raise ValueError(
                f"the stream is damaged before the end of MCU {mcus - 1}, so its beginning cannot "
                "be cut there"
            )
        return letters[: int(ends[0])]

    @functools.cached_property
    def _tables(self) -> _Tables:
        return _tables(self.settings)

    def __reduce__(self) -> tuple[Any, ...]:
        # Sent to worker processes without the tables it has cached.
        return type(self), (self.settings, self.strip, self.size)

    def write(self, letters: np.ndarray) -> bytes:
        """Letters, integer [n] in range(len(alphabet)) -> bytes."""
        return _write(letters, self.alphabet.letters, self.header_parts)


# Reading


class _CodeFinder(abc.ABC):
    """Finds where codes begin in the bytes of segments."""

    @abc.abstractmethod
    def begins(self, data: np.ndarray, marker_at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Runs through segments, each followed by one byte in the place of its marker.

        Args:
          data: uint8 [n].
          marker_at: places of the markers in it.

        Returns:
          (at each bit 1 + the table of the code that begins there, or 0, uint8 [8 n], arbitrary in
          markers; whether a segment has an undefined code, bool [segments]).
        """


class _QuickFinder(_CodeFinder):
    """Takes a block to end with EOB alone, byte by byte: then no state depends on coefficients."""

    def __init__(self, settings: JpegFormat) -> None:
        bits, begin = _quick_automaton(settings)
        state, byte = np.divmod(np.arange(256 * len(bits)), 256)
        begins = np.empty((len(state), 8), np.uint8)
        for place in range(8):
            begins[:, place] = begin[state]
            state = bits[state, byte >> (7 - place) & 1]
        self._begins = begins.view(np.uint64).ravel()
        # A row has the rows after each byte, the first one (after a marker) and its own number.
        rows: list[list[Any]] = [[] for _ in bits]
        for row, (mine, after) in enumerate(
            zip(rows, state.reshape(-1, 256).tolist(), strict=True)
        ):
            mine += [*map(rows.__getitem__, after), rows[1], row]
        self._start = rows[1]

    def begins(self, data: np.ndarray, marker_at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `_CodeFinder`."""
        bytes_and_markers = data.astype(np.uint16)
        bytes_and_markers[marker_at] = 256
        rows = itertools.accumulate(
            bytes_and_markers.tolist(),
            operator.getitem,  # type: ignore[arg-type]
            initial=self._start,
        )
        place = np.fromiter(map(operator.itemgetter(257), rows), np.int32, len(data))
        failed = place[marker_at] == 0
        place <<= 8
        place += data
        return self._begins[place].view(np.uint8), failed


def _quick_automaton(settings: JpegFormat) -> tuple[np.ndarray, np.ndarray]:
    """(next state by state and bit; 1 + the table whose code begins at a state, or 0).

    State 0 is that of undefined codes, state 1 the first of an MCU.
    """
    alphabet = codewords.alphabet(settings)
    indices = codewords.block_table_indices(settings)
    bits: list[list[int]] = [[0, 0]]
    begin = [0]

    def add(kind: int = 0) -> int:
        bits.append([0, 0])
        begin.append(kind)
        return len(bits) - 1

    roots = [(add(2 * index + 1), add(2 * index + 2)) for index in indices]
    for block, index in enumerate(indices):
        ac_root, next_dc = roots[block][1], roots[(block + 1) % len(roots)][0]
        after_bits = [ac_root]  # by the number of amplitude bits left
        for _ in range(_MAX_AMPLITUDE):
            after_bits.append(add())
            bits[-1] = [after_bits[-2]] * 2
        for kind, root, table in zip((DC, AC), roots[block], alphabet.tables[index], strict=True):
            for symbol, (code, length) in table.codes.items():
                state = root
                for shift in range(length - 1, 0, -1):
                    bit = code >> shift & 1
                    bits[state][bit] = bits[state][bit] or add()
                    state = bits[state][bit]
                ends = kind == AC and symbol == EOB
                size = symbol if kind == DC else symbol & 15
                bits[state][code & 1] = next_dc if ends else after_bits[size]
    return np.array(bits, np.int32), np.array(begin, np.uint8)


class _ExactFinder(_CodeFinder):
    """Runs the automaton of valid MCUs, four bits at a time."""

    def __init__(self, settings: JpegFormat) -> None:
        machine = automaton(settings)
        self._following = machine.nibbles >> 5
        begin = _code_begins(machine, settings)
        state, nibble = np.divmod(np.arange(16 * machine.states), 16)
        begins = np.zeros((len(state), 4), np.uint8)
        for place in range(4):
            begins[:, place] = begin[state]
            state = machine.bits[state, nibble >> (3 - place) & 1]
        self._begins = begins.view(np.uint32).ravel()
        # A row has the rows after each four bits, the first one and its own number.
        rows: list[list[Any]] = [[] for _ in range(machine.states)]
        following = self._following.reshape(-1, 16).tolist()
        for row, (mine, after) in enumerate(zip(rows, following, strict=True)):
            mine += [*map(rows.__getitem__, after), rows[START], row]
        self._start = rows[START]

    def begins(self, data: np.ndarray, marker_at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `_CodeFinder`."""
        nibbles = np.stack([data >> 4, data & 15], axis=1)
        given = nibbles.copy()
        given[marker_at] = 16
        rows = itertools.accumulate(given.tobytes(), operator.getitem, initial=self._start)  # type: ignore[arg-type]
        states = map(operator.itemgetter(17), itertools.islice(rows, 0, None, 2))
        state = np.fromiter(states, np.int32, len(data))
        high = (state << 4) + nibbles[:, 0]
        low = (self._following[high] << 4) + nibbles[:, 1]
        begins = self._begins[np.stack([high, low], axis=1)]
        return begins.view(np.uint8).ravel(), state[marker_at] < START


def _code_begins(machine: Automaton, settings: JpegFormat) -> np.ndarray:
    """1 + the table whose code begins at each state of the automaton, or 0, uint8 [states]."""
    begins = np.zeros(machine.states, np.uint8)
    alphabet = codewords.alphabet(settings)
    dc_state = START
    for index in codewords.block_table_indices(settings):
        dc, ac = alphabet.tables[index]
        begins[dc_state] = 2 * index + 1
        first = _after_codes(machine, np.array([dc_state]), dc.codes, DC)
        next_dc = int(_after_codes(machine, first[:1], {EOB: ac.codes[EOB]}, AC)[0])
        found = frontier = np.unique(first)
        while len(frontier):
            after = np.unique(_after_codes(machine, frontier, ac.codes, AC))
            frontier = np.setdiff1d(after[(after >= START) & (after != next_dc)], found)
            found = np.union1d(found, frontier)
        begins[found] = 2 * index + 2
        dc_state = next_dc
    return begins


def _after_codes(
    machine: Automaton, states: np.ndarray, codes: dict[int, tuple[int, int]], kind: int
) -> np.ndarray:
    """The states after each code and some amplitude of its size, int32 [states * codes]."""
    symbol, code, length = np.array([(each, *codes[each]) for each in codes]).T
    size = symbol if kind == DC else symbol & 15
    value, length = code << size, length + size
    now = np.repeat(states[:, None], len(value), axis=1)
    for place in range(int(length.max())):
        bit = value >> np.maximum(length - 1 - place, 0) & 1
        now = np.where(place < length, machine.bits[now, bit], now)
    return now.ravel()


@dataclasses.dataclass(frozen=True, eq=False)
class _Tables:
    """Tables for reading scans of fixed settings.

    Attributes:
      settings: of the encoder.
      alphabet: the letters.
      blocks: index of the tables of each block of an MCU, int32 [blocks].
      codes: by table (luma's DC and AC, chroma's, then one of zeros for markers) and the next 16
        bits: `_OWN_AMPLITUDE` if it is a word of its own | advance << 21 | letter << 9 |
        amplitude bits << 5 | code bits, or 0 for an undefined code, int32 [tables * 65536].
    """

    settings: JpegFormat
    alphabet: Alphabet
    blocks: np.ndarray
    codes: np.ndarray

    @functools.cached_property
    def quick(self) -> _CodeFinder:
        """For most segments."""
        return _QuickFinder(self.settings)

    @functools.cached_property
    def exact(self) -> _CodeFinder:
        """For segments with a block that ends at its last coefficient, without EOB."""
        return _ExactFinder(self.settings)


@functools.lru_cache(maxsize=8)
def _tables(settings: JpegFormat) -> _Tables:
    alphabet = codewords.alphabet(settings)
    letters = alphabet.letters
    codes = np.zeros((2 * len(alphabet.tables) + 1, 1 << 16), np.int32)
    for letter in np.flatnonzero(letters.kind >= DC)[::-1].tolist():
        # The first of the letters of a code, whose joined amplitude bits are 0, comes last.
        kind, symbol = letters.kind[letter], int(letters.symbol[letter])
        size = symbol if kind == DC else symbol & 15
        pending = int(letters.pending[letter])
        length = int(letters.length[letter]) - (size - pending)
        code = int(letters.value[letter]) >> (letters.length[letter] - length)
        first, count = code << 16 - length, 1 << 16 - length
        entry = int(letters.advance[letter]) << 21 | letter << 9 | size << 5 | length
        entry |= (pending > 0) << 26
        codes[2 * letters.table[letter] + (kind == AC), first : first + count] = entry
    blocks = np.array(codewords.block_table_indices(settings), np.int32)
    return _Tables(settings, alphabet, blocks, codes.ravel())


def _read_scan(scan: bytes, tables: _Tables, kernel: types.ModuleType | None) -> np.ndarray:
    """Any bytes after the header -> letters, uint16 [n]."""
    raw = np.frombuffer(scan + _SENTINEL, np.uint8)
    if kernel is not None:
        amplitudes = (_AMPLITUDE_LETTERS, _FIRST_BITS)
        restart = tables.alphabet.restart
        return kernel.read_scan(raw, tables.codes, tables.blocks, *amplitudes, restart)
    ff = np.flatnonzero(raw == 0xFF)
    after_ff = raw[ff + 1]
    stuffing = ff[after_ff == 0] + 1
    markers, code = ff[after_ff != 0], after_ff[after_ff != 0]
    regular = ((code & 0xF8) == RST0) | (code == EOI_CODE)
    count = int(np.argmin(regular))  # the sentinel is not regular
    end = int(markers[count])
    markers, code = markers[: count + 1], code[: count + 1]
    stuffing = stuffing[: np.searchsorted(stuffing, end)]

    # One byte for each byte of the segments, without stuffing, and one for each marker.
    keep = np.ones(end + 1, bool)
    keep[stuffing] = False
    keep[markers[:-1]] = False
    data = raw[: end + 1][keep]
    marker_at = markers - np.searchsorted(stuffing, markers) - np.arange(count + 1)
    read = _read_segments(data, marker_at, tables, tables.quick)
    letters, ends = read.letters, read.ends
    numbers = np.minimum(code[:-1] & 15, 8).astype(np.uint16)
    letters[ends[:-1] - 1] = numbers + np.uint16(tables.alphabet.restart)
    again = np.flatnonzero(read.uncertain | read.failed)
    if not len(again) and end == len(scan):
        return letters[:-1]
    parts = []
    done = 0
    again_read = _read_exactly(data, marker_at, again, tables) if len(again) else ()
    for segment, exact in zip(again.tolist(), again_read, strict=True):
        first = int(ends[segment - 1]) if segment else 0
        if exact is None:
            raw_begin = int(markers[segment - 1]) + 2 if segment else 0
            exact = raw[raw_begin : int(markers[segment])].astype(np.uint16)
        parts += [letters[done:first], exact]
        done = int(ends[segment]) - 1  # the letter of its marker stays
    parts += [letters[done:-1], raw[end : len(scan)].astype(np.uint16)]
    return np.concatenate(parts)


def _read_exactly(
    data: np.ndarray, marker_at: np.ndarray, segments: np.ndarray, tables: _Tables
) -> Iterator[np.ndarray | None]:
    """The letters of some segments without their markers; None for one that is not code words."""
    lengths = np.diff(marker_at, prepend=-1)  # with the byte of the marker
    chosen = np.zeros(len(marker_at), bool)
    chosen[segments] = True
    own_marker_at = np.cumsum(lengths[segments]) - 1
    read = _read_segments(data[np.repeat(chosen, lengths)], own_marker_at, tables, tables.exact)
    begin = 0
    for end, failed in zip(read.ends.tolist(), read.failed.tolist(), strict=True):
        yield None if failed else read.letters[begin : end - 1]
        begin = end


class _Read(NamedTuple):
    """Segments as letters.

    Attributes:
      letters: uint16 [n], a place for a marker after each segment; arbitrary in failed segments.
      ends: letters up to the end of each segment, its marker included, [segments].
      failed: whether code words do not fill the segment up, bool [segments].
      uncertain: whether the quick finder may have erred, see `_uncertain`, bool [segments].
    """

    letters: np.ndarray
    ends: np.ndarray
    failed: np.ndarray
    uncertain: np.ndarray


def _read_segments(
    data: np.ndarray, marker_at: np.ndarray, tables: _Tables, finder: _CodeFinder
) -> _Read:
    """Reads segments, each followed by one byte in the place of its marker.

    Args:
      data: uint8, the last byte being a marker's.
      marker_at: places of the markers in it.
      tables: of the settings.
      finder: finds where the codes begin.
    """
    table_at, failed = finder.begins(data, marker_at)
    table_at.view(np.uint64)[marker_at] = 0
    table_at[8 * marker_at] = 2 * len(tables.alphabet.tables) + 1

    at = np.flatnonzero(table_at != 0)
    table = table_at[at]
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = data
    windows = np.ndarray((len(data),), ">u8", padded.data, strides=(1,)).astype(np.uint64)
    window = windows[at >> 3] << (at & 7).astype(np.uint64)
    place = (window >> np.uint64(48)).astype(np.int32)
    place += table.astype(np.int32) - 1 << 16
    entry = tables.codes[place]
    bits, size, letter = entry & 31, entry >> 5 & 15, entry >> 9 & 4095
    amplitude = ((window << bits.astype(np.uint64)) >> np.uint64(64 - 11)).astype(np.int32)
    amplitude >>= 11 - size
    long = np.flatnonzero(entry >= _OWN_AMPLITUDE)
    joined = amplitude.copy()
    joined[long] = 0
    letter += joined

    # The last code of each segment ends with it, or is padding.
    marker = np.searchsorted(at, 8 * marker_at)
    count = np.ones(len(at), np.int32)
    count[long] += 1 + (size[long] > _LONGEST_WORD)
    last = marker - 1
    some = last > np.concatenate([[-1], marker[:-1]])
    last = np.maximum(last, 0)
    left = at[marker] - at[last]
    whole = bits[last] + size[last] == left
    ones = (window[last] >> np.uint64(56)).astype(np.int32) >> np.maximum(8 - left, 0)
    is_padding = ~whole & (left < 8) & (ones == (1 << np.minimum(left, 8)) - 1)
    padding = last[some & is_padding]
    count[padding] = 0
    entry[padding] = 0
    failed = failed | (some & ~whole & ~is_padding)

    ends = np.cumsum(count)
    letters = np.repeat(letter.astype(np.uint16), count)
    if len(long):
        size, amplitude, begin = size[long], amplitude[long], ends[long] - count[long] + 1
        second = size - _FIRST_BITS[size]
        kept = count[long] > 0
        high = _AMPLITUDE_LETTERS[_FIRST_BITS[size]] + (amplitude >> second)
        letters[begin[kept]] = high[kept]
        low = _AMPLITUDE_LETTERS[second] + (amplitude & (1 << second) - 1)
        two = kept & (second > 0)
        letters[begin[two] + 1] = low[two]
    return _Read(letters, ends[marker], failed, _uncertain(entry, table, marker))


def _uncertain(entry: np.ndarray, table: np.ndarray, marker: np.ndarray) -> np.ndarray:
    """Which segments have a block that is full before its EOB, too full, or ends in zeros, bool."""
    passed = np.cumsum(entry >> 21 & 31)
    block = np.flatnonzero(table & 1)  # DC codes, and markers
    full = block[np.flatnonzero(np.diff(passed[block]) > 62)]  # coefficients up to the next one
    # A run of sixteen zeros, which has no amplitude bits, and EOB.
    without = entry >> 5 & (_ADVANCE | 15)
    run = np.flatnonzero(without == 16 << 16)
    run = run[(without[run + 1] == 0) & (entry[run + 1] > 0)]
    found = np.zeros(len(marker), bool)
    found[np.searchsorted(marker, np.concatenate([full, run]), side="right")] = True
    return found


_MAX_AMPLITUDE = 11
_LONGEST_WORD = codewords.AMPLITUDE_BITS[-1]
_OWN_AMPLITUDE = 1 << 26  # in `_Tables.codes`
_ADVANCE = 31 << 16  # the same, shifted by 5
# By amplitude bits: those in the first word; the letter of so many zero bits.
_FIRST_BITS = np.array([FIRST_PART.get(bits, bits) for bits in range(16)])
_AMPLITUDE_LETTERS = np.array(
    [Alphabet(()).amplitude(bits) if bits else 0 for bits in range(_LONGEST_WORD + 1)]
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
