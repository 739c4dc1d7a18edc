"""The walk through the syntax elements of a slice, between its bits and its code words.

One walk reads bits and gives letters, or reads letters and gives bits: `walk` with `WRITE` unset or
set. It follows ITU-T H.264 7.3.4 and 7.3.5 like `macroblocks.parse`, and accepts what that accepts
and has words (see `alphabet`), but does not check which samples a prediction mode needs.

The functions are compiled by numba where it is installed. Arguments are arrays then, and lists and
bytes without numba, which plain Python indexes faster.

Arguments that most functions have:

    s       AT: the next bit, or the place of the next letter; END: the stop bit, or the number of
            letters; COUNT: of the results; WRITE: 1 to write; PLACES: 1 if words have places
    t       the tables, `Tables`
    given   the bytes of the NAL unit, with `PADDING` behind it; or the letters
    out     the results: letters; or codes, each value << 6 | bits
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.avc import cavlc
from data_pipelines.representations.avc.codewords.alphabet import (
    ADD_16,
    ADD_256,
    CBP,
    CHROMA_AC_PLACE,
    CHROMA_DC_PLACE,
    CHROMA_MODE,
    COEFF_TOKEN,
    COEFF_TOKENS,
    DIGIT,
    INTER_TYPE,
    LEVEL,
    LEVEL_PLACE,
    LUMA_PLACE,
    MAX_LEVEL,
    MAX_SUM,
    MB_TYPE,
    MODE,
    MODE_PLACE,
    MVD,
    REF_IDX,
    RUN_BEFORE,
    SIGNS,
    SKIP,
    TOKEN_PLACE,
    TOTAL_ZEROS,
    ZEROS_PLACE,
    first_letters,
    run_place,
)
from data_pipelines.representations.avc.macroblocks import DC_4X4, INTRA_IN_P, LUMA_X, LUMA_Y
from data_pipelines.representations.codewords import compiled
from data_pipelines.representations.codewords.compiled import jit

AT, END, COUNT, WRITE, PLACES = range(5)
PADDING = bytes(8)
_BLOCKS = 24  # of a macroblock: 16 of luma by row and column, 4 of Cb, 4 of Cr

# Prefix codes by number; of some kinds one for each class or row.
_COEFF_TOKEN_BOOK = 0
_TOTAL_ZEROS_BOOK = 5
_RUN_BEFORE_BOOK = 23
_MB_TYPE_BOOK = 30  # of I slices, then of P slices
_CHROMA_MODE_BOOK = 32
_REF_IDX_BOOK = 31  # plus the number of references, 2 or 3
_CBP_BOOK = 35  # of I_4x4, then of P_L0_16x16
_STRIDE = 64  # values of a book
_SPECIAL = -1  # `_next`: no letter is left


class Tables(NamedTuple):
    """Prefix codes and small tables, flat.

    Attributes:
      bits, offset: of each book: of its longest code, and where it begins in `lookup`.
      lookup: by the next bits of the stream: value << 5 | bits of its code; 0 where there is none.
      codes: by book and value: code << 6 | bits; 0 where there is none.
      zeros: leading zeros of 16 bits.
      totals, ones: of each value of coeff_token.
      classes: book of coeff_token by number nC of coefficients.
      x, y: column and row of luma's blocks in the order of their coding.
      first: letter of the first value at each place, see `alphabet`.
    """

    bits: Any
    offset: Any
    lookup: Any
    codes: Any
    zeros: Any
    totals: Any
    ones: Any
    classes: Any
    x: Any
    y: Any
    first: Any


def _ue(value: int) -> str:
    """An unsigned Exp-Golomb code (9.1)."""
    return "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"


def _books() -> list[dict[str, int]]:
    """All prefix codes: code -> value."""
    token = {total << 2 | ones: value for value, (total, ones) in enumerate(COEFF_TOKENS)}
    books = [{code: token[value] for code, value in book.items()} for book in cavlc.COEFF_TOKEN]
    books += [*cavlc.TOTAL_ZEROS, *cavlc.TOTAL_ZEROS_CHROMA_DC, *cavlc.RUN_BEFORE]
    intra = range(INTER_TYPE)
    books.append({_ue(mb_type): mb_type for mb_type in intra})
    books.append({_ue(INTRA_IN_P + mb_type): mb_type for mb_type in intra[1:]} | {_ue(0): 25})
    books.append({_ue(mode): mode for mode in range(4)})
    books += [{"1": 0, "0": 1}, {_ue(index): index for index in range(3)}]
    for cbp in (cavlc.CBP_INTRA, cavlc.CBP_INTER):
        books.append({_ue(number): value for number, value in enumerate(cbp)})
    return books


@functools.cache
def tables() -> Tables:
    """The tables, as arrays for compiled functions and as lists for others."""
    books = [cavlc.lookup(book) for book in _books()]
    codes = np.zeros((len(books), _STRIDE), np.int64)
    for number, book in enumerate(_books()):
        for code, value in book.items():
            codes[number, value] = int(code, 2) << 6 | len(code)
    sizes = [len(book.entries) for book in books]
    made = Tables(
        bits=np.array([book.bits for book in books]),
        offset=np.cumsum([0, *sizes[:-1]]),
        lookup=np.concatenate([book.entries for book in books]).astype(np.int64),
        codes=codes.ravel(),
        zeros=np.array([16 - value.bit_length() for value in range(1 << 16)]),
        totals=np.array([total for total, _ in COEFF_TOKENS]),
        ones=np.array([ones for _, ones in COEFF_TOKENS]),
        classes=np.array([cavlc.nc_class(total) for total in range(33)]),
        x=np.array(LUMA_X),
        y=np.array(LUMA_Y),
        first=first_letters().astype(np.int64),
    )
    return made if compiled.has_numba() else Tables(*(table.tolist() for table in made))


# Bits and letters


@jit
def _peek(s: Any, given: Any, count: int) -> int:
    """The next bits, 25 at most."""
    at = s[AT]
    byte = at >> 3
    window = (
        int(given[byte]) << 24
        | int(given[byte + 1]) << 16
        | int(given[byte + 2]) << 8
        | int(given[byte + 3])
    )
    return window >> 32 - count - (at & 7) & (1 << count) - 1


@jit
def _skip(s: Any, count: int) -> bool:
    """Whether so many bits are left; they are passed."""
    s[AT] += count
    return s[AT] <= s[END]


@jit
def _put(s: Any, out: Any, result: int) -> None:
    """Appends a result."""
    out[s[COUNT]] = result
    s[COUNT] += 1


@jit
def _next(s: Any, given: Any) -> int:
    """The next letter, which is not passed."""
    return int(given[s[AT]]) if s[AT] < s[END] else _SPECIAL


@jit
def _take(s: Any, given: Any, first: int, size: int) -> int:
    """The next letter, counted from the first of its kind, and passed; -1 if it is of another."""
    index = _next(s, given) - first
    if index < 0 or index >= size:
        return -1
    s[AT] += 1
    return index


@jit
def _book(s: Any, t: Any, given: Any, out: Any, book: int, first: int) -> int:
    """A prefix code: its value, or -1."""
    if s[WRITE]:
        value = _take(s, given, first, _STRIDE)
        code = t.codes[book * _STRIDE + value] if value >= 0 else 0
        if code == 0:
            return -1
        _put(s, out, code)
        return value
    entry = int(t.lookup[t.offset[book] + _peek(s, given, t.bits[book])])
    if entry == 0 or not _skip(s, entry & 31):
        return -1
    _put(s, out, first + (entry >> 5))
    return entry >> 5


@jit
def _read_ue(s: Any, t: Any, given: Any) -> int:
    """The bits of an Exp-Golomb code: its value, or -1."""
    zeros = int(t.zeros[_peek(s, given, 16)])
    if zeros > 15 or not _skip(s, zeros):
        return -1
    value = _peek(s, given, zeros + 1) - 1
    return value if _skip(s, zeros + 1) else -1


@jit
def _write_ue(s: Any, out: Any, value: int) -> None:
    length = 0
    while value + 1 >> length:
        length += 1
    _put(s, out, value + 1 << 6 | 2 * length - 1)


@jit
def _write_high(s: Any, out: Any, high: int) -> None:
    """The letters of a multiple of 16."""
    if high >> 4:
        _put(s, out, ADD_256 + (high >> 4) - 1)
    if high & 15:
        _put(s, out, ADD_16 + (high & 15) - 1)


@jit
def _take_high(s: Any, given: Any) -> int:
    """The multiple of 16 that the next letters add."""
    high = (_take(s, given, ADD_256, 8) + 1) << 4
    return high + _take(s, given, ADD_16, 15) + 1


@jit
def _first(s: Any, t: Any, plain: int, place: int) -> int:
    """The first of a kind of letters at a place; `plain` if words have no places."""
    return int(t.first[place]) if s[PLACES] else plain


# Elements


@jit
def _skip_run(s: Any, t: Any, given: Any, out: Any, left: int) -> int:
    """mb_skip_run, or -1."""
    if s[WRITE]:
        if s[AT] == s[END]:
            return -1
        run = DIGIT * _take_high(s, given)
        rest = _take(s, given, SKIP, DIGIT)
        if (rest < 0 and run) or (rest == 0 and run == 0):
            return -1
        run += max(rest, 0)
        if run > left:
            return -1
        _write_ue(s, out, run)
        return run
    run = _read_ue(s, t, given)
    if run < 0 or run > left or run >= MAX_SUM:
        return -1
    if run:
        _write_high(s, out, run >> 4)
        _put(s, out, SKIP + (run & 15))
    return run


@jit
def _mvd(s: Any, t: Any, given: Any, out: Any, mvd_bits: int) -> bool:
    """A component of mvd_l0, whole pixels; whether it is right."""
    if s[WRITE]:
        high = _take_high(s, given)
        index = _take(s, given, MVD, 2 * DIGIT + 1)
        if index < 0 or (index == 0 and high):
            return False
        negative = index > DIGIT
        pixels = DIGIT * high + (index - DIGIT if negative else index)
        if pixels >= 1 << mvd_bits - 2:
            return False
        code = 8 * pixels - (0 if negative or index == 0 else 1)
        _write_ue(s, out, code)
        return True
    code = _read_ue(s, t, given)
    size = code + 1 >> 1
    pixels = size >> 2
    if code < 0 or size & 3 or size >> mvd_bits or pixels > MAX_SUM:
        return False
    if pixels == 0:
        _put(s, out, MVD)
        return True
    _write_high(s, out, pixels - 1 >> 4)
    _put(s, out, MVD + 1 + (pixels - 1 & 15) + (0 if code & 1 else DIGIT))
    return True


@jit
def _mode(s: Any, t: Any, given: Any, out: Any, expected: int, place: int) -> int:
    """The prediction mode of a block of I_4x4, or -1."""
    first = _first(s, t, MODE, place)
    if s[WRITE]:
        mode = _take(s, given, first, 9)
        if mode == expected:
            _put(s, out, 1 << 6 | 1)
        elif mode >= 0:
            _put(s, out, mode - (mode > expected) << 6 | 4)
        return mode
    bits = _peek(s, given, 4)
    mode = expected
    if bits < 8:
        mode = bits + (bits >= expected)
    if not _skip(s, 4 if bits < 8 else 1):
        return -1
    _put(s, out, first + mode)
    return mode


@jit
def _signs(s: Any, given: Any, out: Any, ones: int) -> bool:
    """The signs of trailing ones; whether they are right."""
    first = SIGNS + (1 << ones) - 2
    if s[WRITE]:
        bits = _take(s, given, first, 1 << ones)
        if bits >= 0:
            _put(s, out, bits << 6 | ones)
        return bits >= 0
    _put(s, out, first + _peek(s, given, ones))
    return _skip(s, ones)


@jit
def _level(s: Any, t: Any, given: Any, out: Any, length: int, first: int, place: int) -> int:
    """The absolute value of a level (9.2.2.1), or 0.

    length: suffixLength. first: 1 for the first level after fewer than three trailing ones.
    """
    letter = _first(s, t, LEVEL, place)
    if s[WRITE]:
        size = DIGIT * _take_high(s, given)
        index = _take(s, given, letter, 2 * DIGIT)
        if index < 0:
            return 0
        negative = index >= DIGIT
        size += index + 1 - (DIGIT if negative else 0)
        code = 2 * size - 2 + negative - 2 * first
        if code < 0 or size > MAX_LEVEL:
            return 0
        if length == 0 and code < 14:
            _put(s, out, 1 << 6 | code + 1)
        elif length == 0 and code < 30:
            _put(s, out, (1 << 4 | code - 14) << 6 | 19)
        elif length == 0:
            _put(s, out, (1 << 12 | code - 30) << 6 | 28)
        elif code < 15 << length:
            suffix = code & (1 << length) - 1
            _put(s, out, (1 << length | suffix) << 6 | (code >> length) + 1 + length)
        else:
            _put(s, out, (1 << 12 | code - (15 << length)) << 6 | 28)
        return size
    prefix = int(t.zeros[_peek(s, given, 16)])
    if prefix > 15 or not _skip(s, prefix + 1):
        return 0
    bits = 12 if prefix == 15 else 4 if prefix == 14 and length == 0 else length
    code = (prefix << length) + (_peek(s, given, bits) if bits else 0) + 2 * first
    if prefix == 15 and length == 0:
        code += 15
    size = (code >> 1) + 1
    if size > MAX_LEVEL or not _skip(s, bits):
        return 0
    _write_high(s, out, size - 1 >> 4)
    _put(s, out, letter + (size - 1 & 15) + (DIGIT if code & 1 else 0))
    return size


@jit
def _block(s: Any, t: Any, given: Any, out: Any, size: int, book: int, block: int) -> int:
    """A residual block (9.2), and its place: TotalCoeff, or -1."""
    first = _first(s, t, COEFF_TOKEN, block)
    token = _book(s, t, given, out, _COEFF_TOKEN_BOOK + book, first)
    if token <= 0:
        return token
    total, ones = int(t.totals[token]), int(t.ones[token])
    if total > size or (ones and not _signs(s, given, out, ones)):
        return -1
    length = 1 if total > 10 and ones < 3 else 0
    for place in range(ones, total):
        after_ones = 1 if place == ones and ones < 3 else 0
        left = LEVEL_PLACE + total - place - 1
        level = _level(s, t, given, out, length, after_ones, left)
        if level == 0:
            return -1
        length = max(length, 1)
        if level > 3 << length - 1 and length < 6:
            length += 1
    zeros = 0
    if total < size:
        row = total - 1 + (15 if size == 4 else 0)
        first = _first(s, t, TOTAL_ZEROS, ZEROS_PLACE + total - 1)
        zeros = _book(s, t, given, out, _TOTAL_ZEROS_BOOK + row, first)
        if zeros < 0 or total + zeros > size:
            return -1
    for left in range(total - 1, 0, -1):
        if zeros == 0:
            break
        first = _first(s, t, RUN_BEFORE, run_place(zeros, left))
        run = _book(s, t, given, out, _RUN_BEFORE_BOOK + min(zeros, 7) - 1, first)
        if run < 0 or run > zeros:
            return -1
        zeros -= run
    return total


# Macroblocks


@jit
def _class(t: Any, totals: Any, beside: int, above: int) -> int:
    """The book of coeff_token (9.2.1), from the places of the blocks left and above, or -1."""
    if beside < 0:
        return int(t.classes[totals[above]]) if above >= 0 else 0
    if above < 0:
        return int(t.classes[totals[beside]])
    return int(t.classes[int(totals[beside]) + int(totals[above]) + 1 >> 1])


@jit
def _residual(
    s: Any, t: Any, given: Any, out: Any, totals: Any, here: int, left: int, up: int, cbp: int,
    whole: bool,
) -> bool:  # fmt: skip
    """7.3.5.3; whether it is right. here, left, up: places in `totals` of this macroblock and its
    neighbours, or -1."""
    if whole:
        book = _class(t, totals, left + 3 if left >= 0 else -1, up + 12 if up >= 0 else -1)
        if _block(s, t, given, out, 16, book, TOKEN_PLACE) < 0:
            return False
    for place in range(16):
        if cbp >> (place >> 2) & 1:
            x, y = int(t.x[place]), int(t.y[place])
            at = here + 4 * y + x
            beside = at - 1 if x else left + 4 * y + 3 if left >= 0 else -1
            above = at - 4 if y else up + 12 + x if up >= 0 else -1
            book = _class(t, totals, beside, above)
            size = 15 if whole else 16
            total = _block(s, t, given, out, size, book, LUMA_PLACE + place)
            if total < 0:
                return False
            totals[at] = total
    if cbp >> 4 == 0:
        return True
    for plane in range(2):
        if _block(s, t, given, out, 4, 4, CHROMA_DC_PLACE + plane) < 0:
            return False
    if cbp >> 4 == 1:
        return True
    for place in range(8):
        base, x, y = 16 + (place & 4), place & 1, place >> 1 & 1
        at = here + base + 2 * y + x
        beside = at - 1 if x else left + base + 2 * y + 1 if left >= 0 else -1
        above = at - 2 if y else up + base + 2 + x if up >= 0 else -1
        book = _class(t, totals, beside, above)
        total = _block(s, t, given, out, 15, book, CHROMA_AC_PLACE + place)
        if total < 0:
            return False
        totals[at] = total
    return True


@jit
def _intra_4x4(
    s: Any, t: Any, given: Any, out: Any, modes: Any, here: int, left: int, up: int
) -> bool:
    """7.3.5.1 and 8.3.1.1; whether it is right. Places as in `_residual`."""
    for place in range(16):
        x, y = int(t.x[place]), int(t.y[place])
        at = here + 4 * y + x
        beside = at - 1 if x else left + 4 * y + 3 if left >= 0 else -1
        above = at - 4 if y else up + 12 + x if up >= 0 else -1
        expected = DC_4X4
        if beside >= 0 and above >= 0:
            expected = min(int(modes[beside]), int(modes[above]))
        mode = _mode(s, t, given, out, expected, MODE_PLACE + place)
        if mode < 0:
            return False
        modes[at] = mode
    return True


@jit
def _macroblock(
    s: Any, t: Any, given: Any, out: Any, totals: Any, modes: Any, mb: int, left: int, up: int,
    references: int, mvd_bits: int,
) -> bool:  # fmt: skip
    """7.3.5; whether it is right. mb, left, up: macroblocks of the slice, or -1."""
    kind = _book(s, t, given, out, _MB_TYPE_BOOK + (references > 0), MB_TYPE)
    if kind < 0:
        return False
    inter = kind == INTER_TYPE
    whole = 0 < kind < INTER_TYPE
    if inter:
        if references > 1:
            ref_idx = _book(s, t, given, out, _REF_IDX_BOOK + references, REF_IDX)
            if ref_idx < 0:
                return False
        if not _mvd(s, t, given, out, mvd_bits) or not _mvd(s, t, given, out, mvd_bits):
            return False
    else:
        if not whole and not _intra_4x4(
            s, t, given, out, modes, 16 * mb, 16 * left if left >= 0 else -1,
            16 * up if up >= 0 else -1,
        ):  # fmt: skip
            return False
        if _book(s, t, given, out, _CHROMA_MODE_BOOK, CHROMA_MODE) < 0:
            return False
    if whole:
        cbp = (kind - 1) // 4 % 3 << 4 | (15 if kind > 12 else 0)
    else:
        cbp = _book(s, t, given, out, _CBP_BOOK + inter, CBP)
        if cbp < 0:
            return False
    if not (cbp or whole):
        return True
    if s[WRITE]:  # mb_qp_delta is 0
        _put(s, out, 1 << 6 | 1)
    elif _peek(s, given, 1) == 0 or not _skip(s, 1):
        return False
    return _residual(
        s, t, given, out, totals, _BLOCKS * mb, _BLOCKS * left if left >= 0 else -1,
        _BLOCKS * up if up >= 0 else -1, cbp, whole,
    )  # fmt: skip


@jit
def _walk(
    s: Any, t: Any, given: Any, out: Any, totals: Any, modes: Any, columns: int, first: int,
    mbs: int, references: int, mvd_bits: int,
) -> bool:  # fmt: skip
    """Walks through the data of a slice; whether it ends where it has to.

    Args:
      s, t, given, out: see the top of this file.
      totals: zeros, 24 for each macroblock of the slice.
      modes: `DC_4X4`, 16 for each macroblock of an I slice.
      columns: macroblocks of a row of the picture.
      first, mbs: address of the slice's first macroblock, and their number.
      references: of a P slice, 1 to 3; 0 for an I slice.
      mvd_bits: see `macroblocks.Slice`.
    """
    mb = 0
    while mb < mbs:
        if references:
            run = _skip_run(s, t, given, out, mbs - mb)
            if run < 0:
                return False
            mb += run
            if mb == mbs:
                break
        column = (first + mb) % columns
        left = mb - 1 if column > 0 and mb > 0 else -1
        up = mb - columns if mb >= columns else -1
        if not _macroblock(s, t, given, out, totals, modes, mb, left, up, references, mvd_bits):
            return False
        mb += 1
    return s[AT] == s[END]


@jit
def walk(
    t: Any, given: Any, out: Any, begins: Any, ends: Any, headers: Any, firsts: Any, mbs: Any,
    references: Any, columns: int, mvd_bits: int, write: int, places: int, totals: Any, modes: Any,
    s: Any, result_ends: Any, valid: Any,
) -> None:  # fmt: skip
    """Walks through the data of slices.

    When writing, the codes of a slice are those of its header, of its letters up to the first one
    that has no code where it stands, and of its stop bit and the zeros that fill its last byte.

    Args:
      t, given, out: see the top of this file; out holds the results of all slices.
      begins, ends: places in `given` of each slice's data, as `AT` and `END`.
      headers: two codes of each slice's header; not read when reading.
      firsts, mbs, references: of each slice: see `_walk`.
      columns, mvd_bits: see `_walk`.
      write: 1 to write.
      places: 1 if words have places.
      totals, modes, s: scratch of 24 and 16 numbers for each macroblock of the largest slice, and
        of 5 numbers.
      result_ends: where the results of each slice end in `out`.
      valid: whether each slice ends where it has to.
    """
    s[COUNT], s[WRITE], s[PLACES] = 0, write, places
    for index in range(len(begins)):
        begin = s[COUNT]
        s[AT], s[END] = begins[index], ends[index]
        for place in range(_BLOCKS * mbs[index]):
            totals[place] = 0
        if references[index] == 0:
            for place in range(16 * mbs[index]):
                modes[place] = DC_4X4
        if write:
            _put(s, out, headers[2 * index])
            _put(s, out, headers[2 * index + 1])
        valid[index] = _walk(
            s, t, given, out, totals, modes, columns, firsts[index], mbs[index],
            references[index], mvd_bits,
        )  # fmt: skip
        if write:
            bits = 0
            for place in range(begin, s[COUNT]):
                bits += out[place] & 63
            fill = (7 - bits) & 7
            _put(s, out, (1 << fill) << 6 | fill + 1)
        result_ends[index] = s[COUNT]
