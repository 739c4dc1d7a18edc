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

With `places`, the words of modes and of coeff_token also say which block of the macroblock they are
of. A token then shows where it stands, and a model need not count the blocks before it. The place
of a mode is its block of luma, 0 to 15, in the order of the stream. The place of coeff_token is
that among all blocks a macroblock may have: the DC of I_16x16, 16 of luma, 2 of chroma DC, 8 of
chroma AC. Words of place 0 are those above; those of other places come after all others.

A *letter* is a single byte (letters 0-255) or a code word, see `representations.codewords`. The
order of the words is the one above. Their number does not depend on the settings of the encoder.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from data_pipelines.representations.codewords import alphabet as alphabets
from data_pipelines.representations.codewords.alphabet import NUM_BYTES, character

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

# Places in a macroblock: the first of each kind of block, and how many there are of all kinds.
LUMA_PLACE, CHROMA_DC_PLACE, CHROMA_AC_PLACE, TOKEN_PLACES = 1, 17, 19, 27
MODE_PLACES = 16
PLACED_MODE = NUM_LETTERS  # of place 1; those of other places follow
PLACED_COEFF_TOKEN = PLACED_MODE + (MODE_PLACES - 1) * _SIZES["mode"]

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
      places: whether words of modes and of coeff_token say which block they are of.
    """

    places: bool = False

    @property
    def family(self) -> str:
        return "avc_codewords:places" if self.places else "avc_codewords"

    def __len__(self) -> int:
        return NUM_LETTERS + len(PLACED) if self.places else NUM_LETTERS

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
        for number, (kind, index, place) in enumerate(PLACED if self.places else ()):
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


# Kind, index and place of the words of other places than 0, in their order.
PLACED = [
    (kind, index, place)
    for kind, places in (("mode", MODE_PLACES), ("coeff_token", TOKEN_PLACES))
    for place in range(1, places)
    for index in range(_SIZES[kind])
]


def without_places() -> tuple[np.ndarray, np.ndarray]:
    """Of each letter the same of place 0, and its place plus 1 (0 for words that have none).

    Both are int32 [letters with places]. Places of coeff_token come after those of modes.
    """
    letters = np.arange(NUM_LETTERS + len(PLACED), dtype=np.int32)
    places = np.zeros(len(letters), np.int32)
    places[MODE : MODE + _SIZES["mode"]] = 1
    places[COEFF_TOKEN : COEFF_TOKEN + _SIZES["coeff_token"]] = 1 + MODE_PLACES
    for number, (kind, index, place) in enumerate(PLACED):
        letters[NUM_LETTERS + number] = _FIRST[kind] + index
        places[NUM_LETTERS + number] = places[_FIRST[kind]] + place
    return letters, places
