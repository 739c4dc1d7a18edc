"""The variable-length codes of macroblocks: CAVLC (ITU-T H.264, 9.2) and the mapping me(v) (9.1.2).

Codes are written as in the tables of the standard, as strings of bits, and turned into tables that
are indexed by the next bits of a stream (`Lookup`). Parsing (`macroblocks`, `macroblock_batch`) and
sampling (`macroblock_machine`) read the same codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Lookup(NamedTuple):
    """A prefix code, indexed by the next `bits` bits.

    Attributes:
      bits: of the longest codeword.
      entries: value << 5 | length of the codeword, 0 where there is none, int32 [2 ** bits].
    """

    bits: int
    entries: np.ndarray


def lookup(codes: Mapping[str, int], bits: int = 0) -> Lookup:
    """The table of a prefix code: codeword -> value."""
    bits = max(bits, *map(len, codes))
    entries = np.zeros(1 << bits, np.int32)
    for code, value in codes.items():
        rest = bits - len(code)
        first = int(code, 2) << rest
        if entries[first : first + (1 << rest)].any():
            raise ValueError(f"the codeword {code} begins like another one")
        entries[first : first + (1 << rest)] = value << 5 | len(code)
    return Lookup(bits, entries)


# Table 9-5: a line for each TotalCoeff and TrailingOnes (T1s), with the codewords for
# 0 <= nC < 2, 2 <= nC < 4, 4 <= nC < 8 and nC == -1 (chroma DC). For 8 <= nC they have six bits.
_COEFF_TOKEN = """
0 0  1                 11              1111        01
1 0  000101            001011          001111      000111
1 1  01                10              1110        1
2 0  00000111          000111          001011      000100
2 1  000100            00111           01111       000110
2 2  001               011             1101        001
3 0  000000111         0000111         001000      000011
3 1  00000110          001010          01100       0000011
3 2  0000101           001001          01110       0000010
3 3  00011             0101            1100        000101
4 0  0000000111        00000111        0001111     000010
4 1  000000110         000110          01010       00000011
4 2  00000101          000101          01011       00000010
4 3  000011            0100            1011        0000000
5 0  00000000111       00000100        0001011
5 1  0000000110        0000110         01000
5 2  000000101         0000101         01001
5 3  0000100           00110           1010
6 0  0000000001111     000000111       0001001
6 1  00000000110       00000110        001110
6 2  0000000101        00000101        001101
6 3  00000100          001000          1001
7 0  0000000001011     00000001111     0001000
7 1  0000000001110     000000110       001010
7 2  00000000101       000000101       001001
7 3  000000100         000100          1000
8 0  0000000001000     00000001011     00001111
8 1  0000000001010     00000001110     0001110
8 2  0000000001101     00000001101     0001101
8 3  0000000100        0000100         01101
9 0  00000000001111    000000001111    00001011
9 1  00000000001110    00000001010     00001110
9 2  0000000001001     00000001001     0001010
9 3  00000000100       000000100       001100
10 0 00000000001011    000000001011    000001111
10 1 00000000001010    000000001110    00001010
10 2 00000000001101    000000001101    00001101
10 3 0000000001100     00000001100     0001100
11 0 000000000001111   000000001000    000001011
11 1 000000000001110   000000001010    000001110
11 2 00000000001001    000000001001    00001001
11 3 00000000001100    00000001000     00001100
12 0 000000000001011   0000000001111   000001000
12 1 000000000001010   0000000001110   000001010
12 2 000000000001101   0000000001101   000001101
12 3 00000000001000    000000001100    00001000
13 0 0000000000001111  0000000001011   0000001101
13 1 000000000000001   0000000001010   000000111
13 2 000000000001001   0000000001001   000001001
13 3 000000000001100   0000000001100   000001100
14 0 0000000000001011  0000000000111   0000001001
14 1 0000000000001110  00000000001011  0000001100
14 2 0000000000001101  0000000000110   0000001011
14 3 000000000001000   0000000001000   0000001010
15 0 0000000000000111  00000000001001  0000000101
15 1 0000000000001010  00000000001000  0000001000
15 2 0000000000001001  00000000001010  0000000111
15 3 0000000000001100  0000000000001   0000000110
16 0 0000000000000100  00000000000111  0000000001
16 1 0000000000000110  00000000000110  0000000100
16 2 0000000000000101  00000000000101  0000000011
16 3 0000000000001000  00000000000100  0000000010
"""
_CHROMA_DC = 4  # the class of nC == -1, after the four of nC >= 0

# Tables 9-7 and 9-8: a line for each total_zeros, a column for each TotalCoeff from 1 on.
_TOTAL_ZEROS = (
    """
0: 1         111    0101   00011 0101  000001 000001
1: 011       110    111    111   0100  00001  00001
2: 010       101    110    0101  0011  111    101
3: 0011      100    101    0100  111   110    100
4: 0010      011    0100   110   110   101    011
5: 00011     0101   0011   101   101   100    11
6: 00010     0100   100    100   100   011    010
7: 000011    0011   011    0011  011   010    0001
8: 000010    0010   0010   011   0010  0001   001
9: 0000011   00011  00011  0010  00001 001    000000
10: 0000010  00010  00010  00010 0001  000000
11: 00000011 000011 000001 00001 00000
12: 00000010 000010 00001  00000
13: 000000011 000001 000000
14: 000000010 000000
15: 000000001
""",
    """
0: 000001 000001 00001 0000 0000 000 00 0
1: 0001   000000 00000 0001 0001 001 01 1
2: 00001  0001   001   001  01   1   1
3: 011    11     11    010  1    01
4: 11     10     10    1    001
5: 10     001    01    011
6: 010    01     0001
7: 001    00001
8: 000000
""",
)
# Table 9-9 (a), chroma DC.
_TOTAL_ZEROS_CHROMA_DC = """
0: 1   1  1
1: 01  01 0
2: 001 00
3: 000
"""
# Table 9-10: a line for each run_before, a column for each zerosLeft from 1 to 6, then for more.
_RUN_BEFORE = """
0: 1 1  11 11  11  11  111
1: 0 01 10 10  10  000 110
2: - 00 01 01  011 001 101
3: - -  00 001 010 011 100
4: - -  -  000 001 010 011
5: - -  -  -   000 101 010
6: - -  -  -   -   100 001
7: - -  -  -   -   -   0001
8: - -  -  -   -   -   00001
9: - -  -  -   -   -   000001
10: - - -  -   -   -   0000001
11: - - -  -   -   -   00000001
12: - - -  -   -   -   000000001
13: - - -  -   -   -   0000000001
14: - - -  -   -   -   00000000001
"""

# Table 9-4: coded_block_pattern by codeNum of me(v), for Intra_4x4 and for Inter prediction.
CBP_INTRA = (
    47, 31, 15, 0, 23, 27, 29, 30, 7, 11, 13, 14, 39, 43, 45, 46, 16, 3, 5, 10, 12, 19, 21, 26,
    28, 35, 37, 42, 44, 1, 2, 4, 8, 17, 18, 20, 24, 6, 9, 22, 25, 32, 33, 34, 36, 40, 38, 41,
)  # fmt: skip
CBP_INTER = (
    0, 16, 1, 2, 4, 8, 32, 3, 5, 10, 12, 15, 47, 7, 11, 13, 14, 6, 9, 31, 35, 37, 42, 44,
    33, 34, 36, 40, 39, 43, 45, 46, 17, 18, 20, 24, 19, 21, 26, 28, 23, 27, 29, 30, 22, 25, 38, 41,
)  # fmt: skip

MAX_LEVEL_PREFIX = 15  # of profiles without escapes of more than 12 bits (7.4.5.3.3, A.2.1)


def nc_class(nc: int) -> int:
    """The column of Table 9-5 for a number nC of coefficients; -1 stands for chroma DC."""
    if nc < 0:
        return _CHROMA_DC
    return 0 if nc < 2 else 1 if nc < 4 else 2 if nc < 8 else 3


def _coeff_token() -> tuple[dict[str, int], ...]:
    """By class of nC: codeword -> total << 2 | trailing ones."""
    classes: tuple[dict[str, int], ...] = tuple({} for _ in range(5))
    for line in _COEFF_TOKEN.split("\n")[1:-1]:
        total, ones, *codes = line.split()
        token = int(total) << 2 | int(ones)
        for which, code in zip((0, 1, 2, _CHROMA_DC), codes, strict=False):
            classes[which][code] = token
        six = 3 if token == 0 else (int(total) - 1) << 2 | int(ones)
        classes[3][f"{six:06b}"] = token
    return classes


def _columns(text: str, value_limit: int = 16) -> list[dict[str, int]]:
    """By column: codeword -> value of its line."""
    columns: list[dict[str, int]] = []
    for line in text.split("\n")[1:-1]:
        value, *codes = line.replace(":", "").split()
        columns += [{} for _ in range(len(codes) - len(columns))]
        for column, code in zip(columns, codes, strict=False):
            if code != "-":
                column[code] = int(value)
    return columns


COEFF_TOKEN = _coeff_token()
TOTAL_ZEROS = tuple(_columns(_TOTAL_ZEROS[0]) + _columns(_TOTAL_ZEROS[1]))
TOTAL_ZEROS_CHROMA_DC = tuple(_columns(_TOTAL_ZEROS_CHROMA_DC))
RUN_BEFORE = tuple(_columns(_RUN_BEFORE))


def _stack(codes: Any) -> Lookup:
    """Several codes as one table: entries int32 [codes, 2 ** bits]."""
    bits = max(len(code) for book in codes for code in book)
    return Lookup(bits, np.stack([lookup(book, bits).entries for book in codes]))


# The same as tables. coeff_token by class of nC (5), values total << 2 | trailing ones; total_zeros
# by TotalCoeff - 1 (15 of blocks of 15 and 16, then 3 of chroma DC); run_before by
# min(zerosLeft, 7) - 1.
COEFF_TOKEN_TABLE = _stack(COEFF_TOKEN)
TOTAL_ZEROS_TABLE = _stack(TOTAL_ZEROS + TOTAL_ZEROS_CHROMA_DC)
RUN_BEFORE_TABLE = _stack(RUN_BEFORE)
