"""The alphabet of JPEG code words: what a scan consists of where the Huffman code cuts it.

A *code word* (T.81, F.1.2) is one of

    DC code       a code of a DC table (the category of a difference)
    AC code       a code of an AC table (zero run and category, end of block, sixteen zeros)
    amplitude     1 to 6 bits. Longer ones are two words: 7 bits 3 + 4, 8 bits 4 + 4, 9 bits 4 + 5,
                  10 bits 5 + 5 and 11 bits 5 + 6
    marker        RST0-RST7 or EOI, with the one-bits before it that fill up the last byte
    header        the constant bytes before the scan; two words where the size of the image, four
                  bytes, stands between them

Codes of the categories 1 to 3 are words together with their amplitude where both have at most
eleven bits, so that only words that are frequent by the table have letters of their own.

A *letter* is a single byte (letters 0-255) or a code word. Bytes stand for what is no sequence of
code words: damaged segments, and the size in a header. Letters are written as characters in a
SentencePiece model: byte b as chr(0x2800 + b), letter 256 + w as chr(0x4E00 + w).

The order of the code words is fixed: header, end of header, RST0-RST7, EOI, amplitudes of 1 to 6
bits by size and value, then for each pair of tables (luma, chroma) the DC words and the AC words,
by symbol and amplitude bits. So the letters of a grey image are the first of a colour image.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from data_pipelines.representations.codewords import alphabet as alphabets
from data_pipelines.representations.codewords.alphabet import NUM_BYTES, character
from data_pipelines.representations.jpeg.format import JpegFormat
from data_pipelines.representations.jpeg.huffman import EOB, ZRL, HuffmanTable, block_tables

_JOINED_BITS, _JOINED_WORD = (
    3,
    11,
)  # most bits of an amplitude, and of it with its code, as one word
AMPLITUDE_BITS = (1, 2, 3, 4, 5, 6)
FIRST_PART = {7: 3, 8: 4, 9: 4, 10: 5, 11: 5}  # of the two words of a longer amplitude
RST0, EOI_CODE = 0xD0, 0xD9

BYTE, HEADER, MARKER, AMPLITUDE, DC, AC = range(6)  # kinds of letters


@dataclasses.dataclass(frozen=True)
class Alphabet(alphabets.Alphabet):
    """The letters of images with these Huffman tables.

    Attributes:
      tables: (DC, AC) of luma and, for colour, of chroma.
    """

    tables: tuple[tuple[HuffmanTable, HuffmanTable], ...]

    @property
    def mode(self) -> str:
        """ "L" or "RGB"."""
        return "L" if len(self.tables) == 1 else "RGB"

    @functools.cached_property
    def letters(self) -> Letters:
        """What each letter is."""
        return Letters.of(self)

    def __len__(self) -> int:
        return len(self.letters.kind)

    @property
    def family(self) -> str:
        return f"jpeg_codewords:{self.mode}"

    def describe(self) -> list[dict[str, Any]]:
        """Each letter with its character, meaning and bits, as plain JSON values."""
        found = self.letters
        kinds = ("byte", "header", "marker", "amplitude", "DC", "AC")
        described: list[dict[str, Any]] = []
        for letter, kind in enumerate(found.kind.tolist()):
            entry: dict[str, Any] = {"character": character(letter), "kind": kinds[kind]}
            if kind in (AMPLITUDE, DC, AC):
                entry["bits"] = f"{found.value[letter]:0{found.length[letter]}b}"
            else:
                entry["value"] = int(found.value[letter])
            if kind in (DC, AC):
                entry["table"] = ("luma", "chroma")[found.table[letter]]
                entry["symbol"] = int(found.symbol[letter])
            described.append(entry)
        return described

    # Letters by meaning

    @property
    def header(self) -> int:
        """Letter of the header, or of the part of it before the size."""
        return NUM_BYTES

    @property
    def header_end(self) -> int:
        """Letter of the part of the header after the size."""
        return NUM_BYTES + 1

    @property
    def restart(self) -> int:
        """Letter of RST0; the others follow."""
        return NUM_BYTES + 2

    @property
    def eoi(self) -> int:
        """Letter of EOI."""
        return NUM_BYTES + 10

    def amplitude(self, bits: int) -> int:
        """Letter of the amplitude of so many zero bits (1-6); larger values follow."""
        return NUM_BYTES + 11 + (1 << bits) - (1 << AMPLITUDE_BITS[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Letters:
    """What each letter of an alphabet is. All int32 [letters]; 0 where it does not apply.

    Attributes:
      kind: `BYTE`, `HEADER`, `MARKER`, `AMPLITUDE`, `DC` or `AC`.
      value: the byte; part of the header (0, 1); second byte of the marker; or the bits.
      length: number of those bits; 0 for bytes, headers and markers.
      table: index of the table of a DC or AC code.
      symbol: of that code, as in `HuffmanTable`.
      pending: amplitude bits that have to follow as letters of their own.
      advance: coefficients of the block that an AC code passes: 0 for EOB.
    """

    kind: np.ndarray
    value: np.ndarray
    length: np.ndarray
    table: np.ndarray
    symbol: np.ndarray
    pending: np.ndarray
    advance: np.ndarray

    @classmethod
    def of(cls, alphabet: Alphabet) -> Letters:
        """The letters of an alphabet, in the order of the top of this file."""
        rows = [(BYTE, byte, 0, 0, 0, 0, 0) for byte in range(NUM_BYTES)]
        rows += [(HEADER, part, 0, 0, 0, 0, 0) for part in range(2)]
        markers = [*range(RST0, RST0 + 8), EOI_CODE]
        rows += [(MARKER, code, 0, 0, 0, 0, 0) for code in markers]
        for bits in AMPLITUDE_BITS:
            rows += [(AMPLITUDE, value, bits, 0, 0, 0, 0) for value in range(1 << bits)]
        for index, pair in enumerate(alphabet.tables):
            for kind, table in zip((DC, AC), pair, strict=True):
                for symbol, (code, length) in sorted(table.codes.items()):
                    size, advance = _meaning(kind, symbol)
                    joined = joined_bits(size, length)
                    rows += [
                        (
                            kind,
                            code << joined | value,
                            length + joined,
                            index,
                            symbol,
                            size - joined,
                            advance,
                        )
                        for value in range(1 << joined)
                    ]
        columns = np.array(rows, np.int32).T.copy()
        columns.flags.writeable = False
        return cls(*columns)


def joined_bits(size: int, length: int) -> int:
    """Amplitude bits, of `size`, that are part of the word of a code of `length` bits."""
    return size if size <= _JOINED_BITS and length + size <= _JOINED_WORD else 0


def _meaning(kind: int, symbol: int) -> tuple[int, int]:
    """(amplitude bits, coefficients passed) of a symbol."""
    if kind == DC:
        return symbol, 0
    if symbol in (EOB, ZRL):
        return 0, 16 if symbol == ZRL else 0
    return symbol & 15, (symbol >> 4) + 1


@functools.lru_cache(maxsize=8)
def checked_alphabet(tables: tuple[tuple[HuffmanTable, HuffmanTable], ...]) -> Alphabet:
    """The alphabet of images with these tables, see `Alphabet`. Equal tables give one object.

    Raises ValueError for a code of ones alone.
    """
    for table in itertools.chain(*tables):
        for code, length in table.codes.values():
            if code == (1 << length) - 1:
                raise ValueError(
                    f"a Huffman code is {length} ones, which T.81 (C.2) reserves: padding "
                    "could not be distinguished from it"
                )
    return Alphabet(tables)


@functools.lru_cache(maxsize=64)
def alphabet(settings: JpegFormat) -> Alphabet:
    """The alphabet of images of these settings."""
    return checked_alphabet(tuple(dict.fromkeys(block_tables(settings))))


def block_table_indices(settings: JpegFormat) -> tuple[int, ...]:
    """Index into `Alphabet.tables` of each block of an MCU, in the order of the scan."""
    pairs = block_tables(settings)
    return tuple(alphabet(settings).tables.index(pair) for pair in pairs)
