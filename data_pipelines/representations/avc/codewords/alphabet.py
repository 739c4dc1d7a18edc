"""The alphabet of H.264 code words: the syntax elements of slices, one word for each value.

    slice         IDR, I, P: the first slice of a picture of this kind; row: a slice that begins a
                  row of macroblocks; next: any other. With start code, parameter sets and header.
    end           ends a slice that is written in bytes
    mb_type       I_4x4, I_16x16 with its 24 values, P_L0_16x16
    skip          mb_skip_run, modulo 16. A run of 0 is no word: it follows from the next one.
    mode          prediction mode of a block of I_4x4
    chroma_mode   intra_chroma_pred_mode
    ref_idx       ref_idx_l0
    mvd           a component of mvd_l0 in pixels: 0, or 1 to 16 with its sign
    cbp           coded_block_pattern
    coeff_token   TotalCoeff and TrailingOnes
    signs         of trailing ones, 1 to 3 bits
    level         1 to 16 with its sign
    total_zeros
    run_before
    add 16, 256   what is added to the value that follows: a multiple of 16 or of 256

A word stands for a value. Which bits it has follows from the words before it in its slice: the code
of coeff_token from the blocks to the left and above, that of total_zeros from coeff_token. So a
model need not learn CAVLC's tables. What follows from other words is no word: mb_qp_delta, which is
0 with a constant QP, stop bits, emulation prevention, and the header of a slice, which follows from
the number of slices before it.

With `places`, words also say where they stand, so that what may follow is seen from the last words
alone, and a model need not count:

    slice         IDR, I and P: the number of pictures before this one, modulo 16
    mode          the block of luma, 0 to 15, in the order of the stream
    coeff_token   the block, of all that a macroblock may have: DC of I_16x16, 16 of luma, 2 of
                  chroma DC, 8 of chroma AC
    level         how many levels are left, with this one
    total_zeros   TotalCoeff
    run_before    how many zeros and how many coefficients are left

Words of the first place of their kind are those above; those of other places come after all others.

A *letter* is a single byte (letters 0-255) or a code word, see `representations.codewords`. The
order of the words is the one above. Their number does not depend on the settings of the encoder.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from data_pipelines.representations.codewords import alphabet as alphabets
from data_pipelines.representations.codewords.alphabet import NUM_BYTES, character
from data_pipelines.representations.codewords.compiled import jit

_SIZES = {
    "slice": 5,
    "end": 1,
    "mb_type": 26,
    "skip": 16,
    "mode": 9,
    "chroma_mode": 4,
    "ref_idx": 3,
    "mvd": 33,
    "cbp": 48,
    "coeff_token": 62,
    "signs": 14,
    "level": 32,
    "total_zeros": 16,
    "run_before": 15,
    "add 16": 15,
    "add 256": 8,
}
_FIRST: dict[str, int] = {}
for _kind, _size in _SIZES.items():
    _FIRST[_kind] = NUM_BYTES + sum(_SIZES[kind] for kind in _FIRST)

# The first letter of each kind.
IDR = _FIRST["slice"]
I, P, ROW, NEXT = range(IDR + 1, IDR + 5)  # noqa: E741
END = _FIRST["end"]
MB_TYPE = _FIRST["mb_type"]
SKIP = _FIRST["skip"]
MODE = _FIRST["mode"]
CHROMA_MODE = _FIRST["chroma_mode"]
REF_IDX = _FIRST["ref_idx"]
MVD = _FIRST["mvd"]
CBP = _FIRST["cbp"]
COEFF_TOKEN = _FIRST["coeff_token"]
SIGNS = _FIRST["signs"]
LEVEL = _FIRST["level"]
TOTAL_ZEROS = _FIRST["total_zeros"]
RUN_BEFORE = _FIRST["run_before"]
ADD_16 = _FIRST["add 16"]
ADD_256 = _FIRST["add 256"]
NUM_LETTERS = ADD_256 + _SIZES["add 256"]  # without places

# Places of words by number, 0 for none: the first of each kind.
_COUNTS = {  # of the values at each place
    "mode": [9] * 16,
    "coeff_token": [62] * 27,
    "level": [32] * 16,
    "total_zeros": [17 - total for total in range(1, 16)],
    "run_before": [zeros + 1 for zeros in range(14, 0, -1) for _ in range(15 - zeros)],
    "slice": [3] * 16,  # only those that begin a picture
}
_FIRST_PLACE: dict[str, int] = {}
for _kind in _COUNTS:
    _FIRST_PLACE[_kind] = 1 + sum(len(_COUNTS[kind]) for kind in _FIRST_PLACE)

MODE_PLACE = _FIRST_PLACE["mode"]
TOKEN_PLACE = _FIRST_PLACE["coeff_token"]  # of the DC of I_16x16
LUMA_PLACE, CHROMA_DC_PLACE, CHROMA_AC_PLACE = TOKEN_PLACE + 1, TOKEN_PLACE + 17, TOKEN_PLACE + 19
LEVEL_PLACE = _FIRST_PLACE["level"]  # of the last one
ZEROS_PLACE = _FIRST_PLACE["total_zeros"]  # of a TotalCoeff of 1
RUN_PLACE = _FIRST_PLACE["run_before"]  # of 14 zeros; see `run_place`
PICTURE_PLACE = _FIRST_PLACE["slice"]
PICTURES = len(_COUNTS["slice"])


@jit
def run_place(zeros: int, left: int) -> int:
    """The place of run_before: the most zeros first, 14, then by the coefficients left, from 1."""
    return RUN_PLACE + (14 - zeros) * (15 - zeros) // 2 + left - 1


INTER_TYPE = 25  # P_L0_16x16 among the values of mb_type; the others are those of I slices
DIGIT = 16  # values of mvd and level up to it are one word
MAX_SUM = 16 * (8 * 16 + 15) + DIGIT  # the largest value of several words
MAX_LEVEL = 2063  # that every suffixLength has a code for

# TotalCoeff and TrailingOnes of each value of coeff_token.
COEFF_TOKENS = [(total, ones) for total in range(17) for ones in range(min(total, 3) + 1)]


@dataclasses.dataclass(frozen=True)
class Alphabet(alphabets.Alphabet):
    """The letters of all H.264 streams.

    Attributes:
      places: whether words say where they stand.
    """

    places: bool = False

    @property
    def family(self) -> str:
        return "avc_codewords:places" if self.places else "avc_codewords"

    def __len__(self) -> int:
        return NUM_LETTERS + len(_PLACED) if self.places else NUM_LETTERS

    def describe(self) -> list[dict[str, Any]]:
        """Each letter with its character, kind and value, as plain JSON values."""
        described: list[dict[str, Any]] = [
            {"character": character(byte), "kind": "byte", "value": byte}
            for byte in range(NUM_BYTES)
        ]
        for kind, size in _SIZES.items():
            for index in range(size):
                letter = character(_FIRST[kind] + index)
                described.append({"character": letter, "kind": kind, "value": _value(kind, index)})
        for number, (kind, index, place) in enumerate(_PLACED if self.places else ()):
            letter = character(NUM_LETTERS + number)
            value = _value(kind, index)
            described.append({"character": letter, "kind": kind, "value": value, "place": place})
        return described


def _value(kind: str, index: int) -> int | str | list[int]:
    """What a word stands for."""
    match kind:
        case "slice":
            return ("IDR", "I", "P", "row", "next")[index]
        case "mvd":
            return index if index <= DIGIT else DIGIT - index
        case "level":
            return index + 1 if index < DIGIT else DIGIT - 1 - index
        case "coeff_token":
            return list(COEFF_TOKENS[index])
        case "signs":
            return f"{index + 2:b}"[1:]
        case "add 16" | "add 256":
            return (index + 1) * int(kind.split()[1])
    return index


@functools.cache
def alphabet(places: bool) -> Alphabet:
    """The alphabet with places or without, one object each: it keeps its hash."""
    return Alphabet(places)


# Kind, index and place of the words of other places than the first of their kind, in their order;
# places are counted from 0 in each kind.
_PLACED = [
    (kind, index, place)
    for kind, counts in _COUNTS.items()
    for place, count in enumerate(counts)
    if place > 0
    for index in range(count)
]


@functools.cache
def without_places() -> tuple[np.ndarray, np.ndarray]:
    """Of each letter the same without its place, and the place; int32 [letters with places]."""
    letters = np.arange(NUM_LETTERS + len(_PLACED), dtype=np.int32)
    places = np.zeros(len(letters), np.int32)
    for kind, counts in _COUNTS.items():
        places[_FIRST[kind] : _FIRST[kind] + counts[0]] = _FIRST_PLACE[kind]
    for number, (kind, index, place) in enumerate(_PLACED):
        letters[NUM_LETTERS + number] = _FIRST[kind] + index
        places[NUM_LETTERS + number] = _FIRST_PLACE[kind] + place
    return letters, places


def first_letters() -> np.ndarray:
    """Of each place the letter of the first value there, int32 [places]; 0 for no place."""
    _, places = without_places()
    return np.unique(places, return_index=True)[1].astype(np.int32)
