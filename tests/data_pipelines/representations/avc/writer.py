"""Writes the syntax of macroblocks back to bits (ITU-T H.264, 7.3.4, 7.3.5, 9.1, 9.2): the inverse
of `macroblocks.parse`, from the same tables of codes, with its own derivation of nC."""

from __future__ import annotations

import itertools

from data_pipelines.representations.avc import cavlc
from data_pipelines.representations.avc.bitstream import P
from data_pipelines.representations.avc.macroblocks import INTRA_IN_P

TOKENS = [{value: code for code, value in book.items()} for book in cavlc.COEFF_TOKEN]
ZEROS = [{value: code for code, value in book.items()} for book in cavlc.TOTAL_ZEROS]
ZEROS_DC = [{value: code for code, value in book.items()} for book in cavlc.TOTAL_ZEROS_CHROMA_DC]
RUNS = [{value: code for code, value in book.items()} for book in cavlc.RUN_BEFORE]


def ue(value):
    return "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"


def se(value):
    return ue(2 * value - 1 if value > 0 else -2 * value)


def block(coefficients, nc):
    """9.2, for coefficients in scan order."""
    places = [at for at, level in enumerate(coefficients) if level][::-1]
    levels = [coefficients[at] for at in places]
    ones = 0
    while ones < min(3, len(levels)) and abs(levels[ones]) == 1:
        ones += 1
    bits = TOKENS[cavlc.nc_class(nc)][len(levels) << 2 | ones]
    bits += "".join("1" if level < 0 else "0" for level in levels[:ones])
    length = 1 if len(levels) > 10 and ones < 3 else 0
    for place, level in enumerate(levels[ones:]):
        code = 2 * level - 2 if level > 0 else -2 * level - 1
        if place == 0 and ones < 3:
            code -= 2
        bits += level_code(code, length)
        length = max(length, 1)
        if abs(level) > 3 << length - 1 and length < 6:
            length += 1
    if levels and len(levels) < len(coefficients):
        zeros = places[0] + 1 - len(levels)
        book = ZEROS_DC if len(coefficients) == 4 else ZEROS
        bits += book[len(levels) - 1][zeros]
        for at, after in itertools.pairwise(places):
            if zeros:
                bits += RUNS[min(zeros, 7) - 1][at - after - 1]
                zeros -= at - after - 1
    return bits


def level_code(code, length):
    """9.2.2.1, from the levelCode back."""
    if length == 0:
        if code < 14:
            return "0" * code + "1"
        if code < 30:
            return "0" * 14 + f"1{code - 14:04b}"
        return "0" * 15 + f"1{code - 30:012b}"
    if code < 15 << length:
        return "0" * (code >> length) + "1" + f"{code & (1 << length) - 1:0{length}b}"
    return "0" * 15 + f"1{code - (15 << length):012b}"


def slice_data(macroblocks, shape):
    """The bits of a slice's data with its stop bit, as a string."""
    bits, at = "", shape.first
    totals = {}
    for mb in macroblocks:
        if shape.slice_type == P:
            bits += ue(mb.address - at)
        bits += macroblock(mb, shape, totals)
        at = mb.address + 1
    if at < shape.first + shape.mbs:
        bits += ue(shape.first + shape.mbs - at)
    return bits + "1"


def macroblock(mb, shape, totals):
    bits = ue(mb.mb_type + (INTRA_IN_P if shape.slice_type == P and not mb.inter else 0))
    whole = not mb.inter and mb.mb_type > 0
    if mb.inter:
        if shape.num_ref_idx == 2:
            bits += str(1 - mb.ref_idx)
        elif shape.num_ref_idx > 2:
            bits += ue(mb.ref_idx)
        bits += se(mb.mvd[0]) + se(mb.mvd[1])
    else:
        bits += "".join("1" if mode < 0 else f"0{mode:03b}" for mode in mb.modes)
        bits += ue(mb.chroma_mode)
    if not whole:
        bits += ue((cavlc.CBP_INTER if mb.inter else cavlc.CBP_INTRA).index(mb.cbp))
    if mb.qp_delta is not None:
        bits += se(mb.qp_delta)
    for (kind, place), coefficients in mb.blocks.items():
        bits += block(coefficients, nc(kind, place, mb.address, shape, totals))
        if not kind.endswith("dc"):
            plane, x, y = sample(kind, place)
            totals[plane, *position(mb.address, shape, plane, x, y)] = sum(map(bool, coefficients))
    return bits


def sample(kind, place):
    """(plane, column, row) of a block within its macroblock."""
    if kind == "chroma_ac":
        return 1 + place // 4, place % 2, place // 2 % 2
    return 0, place // 4 % 2 * 2 + place % 2, place // 8 * 2 + place // 2 % 2


def position(address, shape, plane, x, y):
    """(column, row) of a block in the picture."""
    side = 4 if plane == 0 else 2
    return address % shape.columns * side + x, address // shape.columns * side + y


def nc(kind, place, address, shape, totals):
    """9.2.1, from the totals of blocks by their position in the picture."""
    if kind == "chroma_dc":
        return -1
    plane, x, y = sample(kind, 0 if kind == "luma_dc" else place)
    side = 4 if plane == 0 else 2
    column, row = position(address, shape, plane, x, y)
    near = []
    for left, above in ((column - 1, row), (column, row - 1)):
        holder = above // side * shape.columns + left // side
        if left >= 0 and above >= 0 and holder >= shape.first:
            near.append(totals.get((plane, left, above), 0))
    return sum(near) + 1 >> 1 if len(near) == 2 else sum(near)
