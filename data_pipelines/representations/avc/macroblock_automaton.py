"""Which bits may follow in the data of a slice: an automaton with registers.

It generates what `macroblocks.parse` accepts (but for raised QPs: mb_qp_delta is 0 here), a bit at
a time, and knows for each state a number of bits within which the slice can end. It runs on numpy's
and on JAX's arrays.

How it is built
* All codes are one automaton over bits (`_Nodes`): a node is a place in a codeword together with
  what the block's later codes depend on (TotalCoeff, levels that are left, suffixLength, zeros
  that are left). Its table holds for each node and bit the next node, and what the bit completes.
* What is not finite stands in registers. A macroblock is a list of *slots* coded one after the
  other: 16 modes of Intra_4x4, or the residual blocks that coded_block_pattern leaves. Each slot
  has a number (a mode, or TotalCoeff) that later slots are coded by: those to the right and below.
  Of each plane (luma, chroma, modes) one word holds the last number in each column and each row of
  blocks, four bits each; numbers of 16 are held as 15, for nC = (nA + nB + 1) >> 1 of 8 and more
  is one class. When a slot is complete, the next one's neighbours are read from the word, and a
  table has the node that it begins with.
* Which neighbours exist is known where a macroblock begins: nodes and slots come in variants.
* Between macroblocks of one slice, the row above is a word a column, and the left neighbour's
  numbers stay in the rows of the planes' words. With one macroblock a slice there is nothing to
  keep, and the registers for it do not exist.
* mb_skip_run is counted, not tabulated: its value is bounded by the macroblocks that are left.

Bits to the end (`bits_to_end`) are of a way that always exists, not of the shortest one: each block
that is left takes the six bits of the longest empty one, each mode four, each later macroblock of
an I slice 13, later ones of a P slice one run. Along that way the number falls by at least one with
every bit. It never has two bytes of zeros after each other, so it needs emulation prevention at
most once: where two bytes 00 have come already. Long runs are cut for that, see `_RUN_MBS`.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.avc import cavlc
from data_pipelines.representations.avc.macroblocks import (
    DC_4X4,
    I_4X4,
    I_16X16,
    INTRA_IN_P,
    LEFT,
    LUMA_X,
    LUMA_Y,
    NEEDS_4X4,
    NEEDS_16X16,
    NEEDS_CHROMA,
    UP,
    UP_LEFT,
)
from data_pipelines.representations.base import Array

# What a macroblock can have of its neighbours, by the variant's number.
VARIANTS = (0, LEFT, UP, LEFT | UP, LEFT | UP | UP_LEFT)

# An entry of `table`: the next node, then five bits of 1 + the number that the slot at hand gets
# and one for its end; or _BEGINS and the entry of `next_slot` for the first one of a list.
_VALUE, _ENDS, _BEGINS = 20, 25, 26
_MASK = (1 << _VALUE) - 1
# An entry of `next_slot`: the slot; its column and row in the words of its plane; the plane; how it
# begins; whether it has both neighbours. After the last slot of a residual: a slot that is never
# coded, place _END of its list.
_SLOT_MASK = (1 << 14) - 1
_COLUMN, _ROW, _PLANE, _GROUP, _BOTH = 14, 16, 18, 20, 25
LUMA, CHROMA, MODES = range(3)
# How a slot begins, rows of `begin`: blocks of luma, of Intra_16x16's DC, of AC and of chroma DC;
# modes by the samples that their block has; then the nodes after the last slot.
_LUMA, _DC, _AC, _CHROMA_DC = range(4)
_MODE_GROUP = 4
_AFTER_MODES = _MODE_GROUP + len(VARIANTS)
_DONE = _AFTER_MODES + len(VARIANTS)
_END = 27
# What a coded_block_pattern leaves of the words, an entry of `traits`: of luma's four bits at the
# residual's beginning and four at its end, one each of a half of the columns or rows (`_SPREAD`);
# one of chroma's at the beginning; one for Intra_16x16.
_AFTER_BITS, _CHROMA_BIT, _WHOLE_BIT = 4, 8, 9
_SPREAD = np.array(
    [sum(0xFF << 8 * half for half in range(4) if bits >> half & 1) for bits in range(16)]
).astype(np.uint32).view(np.int32)  # fmt: skip

# Bits of the way to the end.
_EMPTY_BITS = 6  # of the longest code of a block without coefficients
_CHROMA_DC_BITS = 2
_MODE_BITS = 4
_I_BITS = 13  # of an Intra_16x16 macroblock without coefficients
_P_BITS = 5
_RUN_MBS = 126  # of a run on that way: its code has no byte of zeros
_FAR = 1 << 24  # more bits than any slice has
_ALL_DC = DC_4X4 * 0x11111111  # the word of modes of what is no Intra_4x4


class Entry(NamedTuple):
    """What a bit leads to.

    Attributes:
      node: the key of the next node; None where the slot's end decides it.
      value: the number that the slot at hand gets, or None.
      begins: the key of the slot before the first one of a list, or None.
      ends: the slot at hand is complete.
    """

    node: Hashable = None
    value: int | None = None
    begins: Hashable = None
    ends: bool = False


DEAD: Hashable = ("dead",)
STOP: Hashable = ("stop",)
PADDING: Hashable = ("padding",)
PREFIX: Hashable = ("mb_skip_run", "prefix")
SUFFIX: Hashable = ("mb_skip_run", "suffix")
_NO_SLOT: Hashable = ("no slot",)


class _Codes:
    """The nodes: what follows a key on a bit."""

    def __init__(self, mvd_bits: int):
        self._mvd_bits = mvd_bits
        self._books: dict[Hashable, dict[str, Entry]] = {}

    def entry(self, key: Any, bit: int) -> Entry:
        """The entry of a node and a bit; its node is DEAD where no valid slice follows."""
        dead = Entry(DEAD)
        match key:
            case ("free", 1, after):
                return after
            case ("free", count, after):
                return Entry(("free", count - 1, after))
            case ("level", size, total, left, length, first, prefix):
                if bit == 0:
                    more = ("level", size, total, left, length, first, prefix + 1)
                    return Entry(more) if prefix < cavlc.MAX_LEVEL_PREFIX else dead
                return self._level_done(size, total, left, length, first, prefix)
            case ("mvd", components, "prefix", zeros):
                if bit == 0:
                    return (
                        Entry(("mvd", components, "prefix", zeros + 1))
                        if zeros < self._mvd_bits
                        else dead
                    )
                if zeros == 0:
                    return self._mvd_done(components)
                return Entry(("mvd", components, "suffix", zeros)) if zeros > 2 else dead
            case ("mvd", components, "suffix", left):
                if left in (2, 3) and bit:
                    return dead  # no whole pixel
                if left == 1:
                    return self._mvd_done(components)
                return Entry(("mvd", components, "suffix", left - 1))
            case ("mb_qp_delta", slots):
                return Entry(begins=slots) if bit else dead
            case ("first run", references):  # mb_skip_run where the slice is one macroblock
                return Entry(self.head(references, 0)) if bit else Entry(("first run", 1, 0))
            case ("first run", 1, 0):
                return Entry(("first run", 1, 1)) if bit else dead
            case ("first run", 1, 1):
                return dead if bit else Entry(STOP)
            case ("stop",):
                return Entry(PADDING) if bit else dead
            case ("padding",):
                return dead if bit else Entry(PADDING)
            case ("mb_skip_run", "prefix"):
                return Entry(SUFFIX) if bit else Entry(PREFIX)
            case ("mb_skip_run", "suffix"):
                return Entry(SUFFIX)
            case ("dead",):
                return dead
            case (*name, prefix):
                return self._in_book(tuple(name), prefix + str(bit))
        raise AssertionError(key)

    def head(self, references: int, variant: int) -> Hashable:
        """The node before mb_type: of I slices (0 references) or of P slices."""
        return ("mb_type", references, variant, "")

    def block(self, size: int, stored: bool, which: int) -> Hashable:
        """The node before coeff_token."""
        return ("coeff_token", size, stored, which, "")

    def mode(self, samples: int, expected: int) -> Hashable:
        """The node before prev_intra4x4_pred_mode_flag."""
        return ("mode", samples, expected, "")

    def chroma(self, variant: int, whole: bool, cbp: int) -> Hashable:
        """The node before intra_chroma_pred_mode."""
        return ("intra_chroma_pred_mode", variant, whole, cbp, "")

    def _in_book(self, name: tuple[Any, ...], prefix: str) -> Entry:
        book = self._books.get(name)
        if book is None:
            book = self._books[name] = self._book(*name)
        if prefix in book:
            return book[prefix]
        if any(code.startswith(prefix) for code in book):
            return Entry((*name, prefix))
        return Entry(DEAD)

    def _book(self, kind: str, *of: Any) -> dict[str, Entry]:
        """The codewords that may follow."""
        return dict(getattr(self, f"_{kind}")(*of))

    def _mb_type(self, references: int, variant: int) -> Iterable[tuple[str, Entry]]:
        for mb_type in range(25):
            code = ue(mb_type + (INTRA_IN_P if references else 0))
            if mb_type == I_4X4:
                if not references:
                    yield code, Entry(begins=("modes", variant, -1))
                continue
            if NEEDS_16X16[(mb_type - 1) % 4] & ~VARIANTS[variant] == 0:
                cbp = (mb_type - I_16X16) // 4 % 3 << 4 | 15 * (mb_type > 12)
                yield code, Entry(self.chroma(variant, True, cbp))
        if references > 1:
            yield ue(0), Entry(("ref_idx_l0", references, variant, ""))
        elif references:
            yield ue(0), Entry(("mvd", (variant, 2), "prefix", 0))

    def _ref_idx_l0(self, references: int, variant: int) -> Iterable[tuple[str, Entry]]:
        after = Entry(("mvd", (variant, 2), "prefix", 0))
        codes = ("1", "0") if references == 2 else map(ue, range(references))
        return ((code, after) for code in codes)

    def _mvd_done(self, components: tuple[int, int]) -> Entry:
        variant, left = components
        if left > 1:
            return Entry(("mvd", (variant, left - 1), "prefix", 0))
        return Entry(("coded_block_pattern", variant, True, ""))

    def _coded_block_pattern(self, variant: int, inter: bool) -> Iterable[tuple[str, Entry]]:
        for number, cbp in enumerate(cavlc.CBP_INTER if inter else cavlc.CBP_INTRA):
            slots = self.slots(variant, False, cbp)
            yield ue(number), Entry(("mb_qp_delta", slots)) if cbp else Entry(begins=slots)

    def _intra_chroma_pred_mode(
        self, variant: int, whole: bool, cbp: int
    ) -> Iterable[tuple[str, Entry]]:
        for mode, needs in enumerate(NEEDS_CHROMA):
            if needs & ~VARIANTS[variant] == 0:
                slots = self.slots(variant, True, cbp)
                after: Hashable = ("coded_block_pattern", variant, False, "")
                yield ue(mode), Entry(("mb_qp_delta", slots) if whole else after)

    def slots(self, variant: int, whole: bool, cbp: int) -> Hashable:
        """The slot before the first one of a macroblock's residual."""
        return ("residual", self.available(variant), whole, cbp, -1)

    @staticmethod
    def available(variant: int) -> tuple[int, int]:
        """Whether there are macroblocks to the left and above."""
        have = VARIANTS[variant]
        return int(have & LEFT > 0), int(have & UP > 0)

    def _mode(self, samples: int, expected: int) -> Iterable[tuple[str, Entry]]:
        for mode, needs in enumerate(NEEDS_4X4):
            if needs & ~samples == 0:
                rest = mode - (mode > expected)
                code = "1" if mode == expected else f"0{rest:03b}"
                yield code, Entry(value=mode, ends=True)

    def _coeff_token(self, size: int, stored: bool, which: int) -> Iterable[tuple[str, Entry]]:
        for code, token in cavlc.COEFF_TOKEN[which].items():
            total, ones = token >> 2, token & 3
            if total > size:
                continue
            number = min(total, 15) if stored else None
            if total == 0:
                yield code, Entry(value=number, ends=True)
                continue
            length, first = int(total > 10 and ones < 3), int(ones < 3)
            after = self._levels(size, total, total - ones, length, first)
            if ones:
                after = Entry(("free", ones, after))
            yield code, after._replace(value=number)

    def _levels(self, size: int, total: int, left: int, length: int, first: int) -> Entry:
        if left:
            return Entry(("level", size, total, left, length, first, 0))
        if total == size:
            return Entry(ends=True)
        return Entry(("total_zeros", size, total, ""))

    def _level_done(
        self, size: int, total: int, left: int, length: int, first: int, prefix: int
    ) -> Entry:
        """9.2.2.1."""
        suffix = 12 if prefix == 15 else 4 if prefix == 14 and length == 0 else length
        code = (prefix << length) + (15 if prefix == 15 and length == 0 else 0) + 2 * first
        now = max(length, 1)
        # Whatever the suffix: it does not carry a level over the threshold.
        now = min(6, now + ((code + 2 >> 1) > 3 << now - 1))
        after = self._levels(size, total, left - 1, now, 0)
        return Entry(("free", suffix, after)) if suffix else after

    def _total_zeros(self, size: int, total: int) -> Iterable[tuple[str, Entry]]:
        books = cavlc.TOTAL_ZEROS_CHROMA_DC if size == 4 else cavlc.TOTAL_ZEROS
        for code, zeros in books[total - 1].items():
            if total + zeros <= size:
                yield code, self._runs(zeros, total - 1)

    def _runs(self, zeros: int, left: int) -> Entry:
        return Entry(("run_before", zeros, left, "")) if zeros and left else Entry(ends=True)

    def _run_before(self, zeros: int, left: int) -> Iterable[tuple[str, Entry]]:
        for code, run in cavlc.RUN_BEFORE[min(zeros, 7) - 1].items():
            if run <= zeros:
                yield code, self._runs(zeros - run, left - 1)


def ue(value: int) -> str:
    """An unsigned Exp-Golomb code (9.1)."""
    return "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"


class Context(NamedTuple):
    """What is known of the slice at hand, int32 arrays that broadcast with the registers.

    Attributes:
      first: address of its first macroblock.
      mbs: its macroblocks.
      references: of a P slice; 0 for an I slice.
    """

    first: Array
    mbs: Array
    references: Array


class Automaton(NamedTuple):
    """The tables. All fields are arrays or numbers, so it is also a pytree.

    Registers are a NamedTuple of int32 arrays of one shape (`registers_of`):
      node: of the table.
      slot: the entry of `next_slot` that led to it; 0 in a macroblock's header.
      luma, chroma, modes: the words of the planes; low half columns, high half rows. Chroma has
        two columns of Cb, then two of Cr.
      mb: macroblocks before the one at hand.
      run, so_far: of mb_skip_run the zeros of the prefix or the bits of the suffix that are left,
        and the value so far, one more than the run.
      above0, ...: of each column the low halves of the words where its last macroblock ended:
        luma, and chroma in the high half.
      modes0, ...: likewise of modes.
    With one macroblock a slice there are the first two lines alone.

    Attributes:
      table: by 2 * node + bit, see `_VALUE`, int32.
      distance: bits from a node to the end of its slot, or in a macroblock's header to the end of
        the macroblock, int32 [nodes]; _FAR from the dead node.
      next_slot: see `_SLOT_MASK`, int32 [slots].
      rest: bits of the macroblock's slots after each, int32 [slots].
      traits: see `_SPREAD`, int32 [slots].
      spread: `_SPREAD`.
      begin: by group, `both`, column's and row's number: the node, int32.
      heads: nodes before mb_type, int32 [4 references, variants].
      first_nodes: that slices begin with, int32 [4 references].
      later_runs: bits of so many macroblocks at the end of a P slice, int32 [slice_mbs + 1].
      run_zeros: zeros before the code of so long a run, int32 [_RUN_MBS + 1].
      column_of: by address, int32 [mbs of a picture].
      columns: 0, 1, ... to the last one of a picture, int32; empty with one macroblock a slice.
      stop, prefix, suffix: the nodes of these names.
    """

    table: Array
    distance: Array
    next_slot: Array
    rest: Array
    traits: Array
    spread: Array
    begin: Array
    heads: Array
    first_nodes: Array
    later_runs: Array
    run_zeros: Array
    column_of: Array
    columns: Array
    stop: int
    prefix: int
    suffix: int

    def start(self, context: Context) -> Any:
        """Before the first bit of a slice's data; of the context's shape."""
        zero = 0 * (context.first + context.mbs + context.references)
        kind = registers_of(len(self.columns))
        registers = kind(*(zero for _ in kind._fields))
        registers = registers._replace(node=_take(self.first_nodes, context.references + zero))
        return registers if self._single else registers._replace(so_far=zero + 1)

    @property
    def _single(self) -> bool:
        return len(self.columns) == 0

    def step(self, registers: Any, bit: Array, context: Context) -> Any:
        """The registers after one more bit (int32, 0 or 1); shapes are broadcast."""
        xp = bit.__array_namespace__()
        old = registers
        entry = _take(self.table, 2 * old.node + bit)
        begins = entry >= 1 << _BEGINS
        ends = entry >= 1 << _ENDS
        value = xp.where(begins, -1, (entry >> _VALUE & 31) - 1)
        words = _put((old.luma, old.chroma, old.modes), old.slot, value, xp)
        after = _take(self.next_slot, old.slot & _SLOT_MASK)
        after = xp.where(begins, entry & (1 << _BEGINS) - 1, after)
        done = ends & ((after >> _GROUP & 31) == _DONE)
        if not self._single:
            traits = _take(self.traits, after & _SLOT_MASK)
            halves = xp.where(done, traits >> _AFTER_BITS, xp.where(begins, traits, -1)) & 15
            no_chroma = begins & ((traits >> _CHROMA_BIT & 1) == 0)
            words = (
                words[0] & _take(self.spread, halves),
                xp.where(no_chroma, 0, words[1]),
                xp.where(done & ((traits >> _WHOLE_BIT & 1) == 1), _ALL_DC, words[2]),
            )
        plane, column, row = _place(after)
        word = xp.where(plane == LUMA, words[0], xp.where(plane == CHROMA, words[1], words[2]))
        near = (word >> column & 15) << 4 | word >> row & 15
        node = _take(self.begin, (after >> _GROUP & 63) << 8 | near)
        new = old._replace(
            node=xp.where(ends, node, entry & _MASK),
            slot=xp.where(ends, xp.where(done, 0, after & _NO_GROUP), old.slot),
            luma=words[0],
            chroma=words[1],
            modes=words[2],
        )
        return new if self._single else self._between(old, new, done, bit, context, xp)

    def _between(
        self, old: Any, new: Any, done: Array, bit: Array, context: Context, xp: Any
    ) -> Any:
        """The end of a macroblock, mb_skip_run, and the beginning of the next macroblock."""
        inter = context.references > 0
        columns = range(len(self.columns))
        # The macroblock is done: its lower blocks are kept, its right ones stay in the words' rows.
        luma, modes = new.luma, new.modes
        x = _take(self.column_of, context.first + xp.minimum(old.mb, context.mbs - 1))
        lower = luma & 0xFFFF | new.chroma << 16
        kept = {}
        for column in columns:
            here = done & (x == column)
            above, mode = f"above{column}", f"modes{column}"
            kept[above] = xp.where(here, lower, getattr(old, above))
            kept[mode] = xp.where(here, modes & 0xFFFF, getattr(old, mode))
        # mb_skip_run.
        prefix, suffix = old.node == self.prefix, old.node == self.suffix
        run = xp.where(suffix, old.run - 1, old.run + xp.where(prefix, 1 - bit, 0))
        count = xp.where(suffix, 2 * old.so_far + bit, old.so_far)
        run_ends = (prefix & (bit == 1) | suffix) & (run == 0)
        skipped = xp.where(run_ends, count - 1, 0)
        too_many = (prefix | suffix) & ((count << run) - 1 > context.mbs - old.mb)
        for column in columns:
            away = column - x
            away = xp.where(away < 0, away + len(columns), away)
            above = f"above{column}"
            kept[above] = xp.where(away < skipped, 0, kept[above])
        mb = old.mb + xp.where(done, 1, skipped)
        ended = (done | run_ends) & (mb == context.mbs)
        begins = (run_ends | done & ~inter) & ~ended
        # The next macroblock: its neighbours' blocks.
        x = _take(self.column_of, context.first + xp.minimum(mb, context.mbs - 1))
        left = (x > 0) & (mb > 0)
        up = mb >= len(columns)
        corner = (x > 0) & (mb > len(columns))
        above, above_modes = 0 * x, 0 * x
        for column in columns:
            here = up & (x == column)
            above = above | xp.where(here, kept[f"above{column}"], 0)
            above_modes = above_modes | xp.where(here, kept[f"modes{column}"], 0)
        rows = xp.where(left, -1 << 16, 0)
        known_rows = xp.where(skipped > 0, 0, rows)
        variant = xp.where(left, 1, 0) + xp.where(up, 2, 0) + xp.where(corner, 1, 0)
        head = _take(self.heads.reshape(-1), context.references * len(VARIANTS) + variant)
        node = xp.where(begins, head, xp.where(done, self.prefix, new.node))
        node = xp.where(ended, self.stop, xp.where(too_many, 0, node))
        return new._replace(
            node=node,
            luma=xp.where(begins, luma & known_rows | above & 0xFFFF, luma),
            chroma=xp.where(begins, new.chroma & known_rows | above >> 16 & 0xFFFF, new.chroma),
            modes=xp.where(begins, modes & rows | above_modes, modes),
            mb=mb,
            run=xp.where(done, 0, run),
            so_far=xp.where(done, 1, count),
            **kept,
        )

    def bits_to_end(self, registers: Any, context: Context) -> Array:
        """Bits of a way to the end of the slice, its stop bit among them, int32.

        0 after the stop bit; _FAR or more where no valid slice follows.
        """
        xp = registers.node.__array_namespace__()
        here = _take(self.distance, registers.node) + 1
        here = here + _take(self.rest, registers.slot & _SLOT_MASK)
        if self._single:
            return here
        inter = context.references > 0
        most = len(self.later_runs) - 1
        left = context.mbs - registers.mb
        later = xp.clip(left - 1, 0, most)
        later = xp.where(inter, _take(self.later_runs, later), _I_BITS * later)

        def after(run: Array) -> Array:
            """Bits after a run: none if it ends the slice, else a macroblock and what follows."""
            rest = left - run
            more = _P_BITS + _take(self.later_runs, xp.clip(rest - 1, 0, most))
            return xp.where(rest == 0, 0, more)

        run, count = registers.run, registers.so_far
        aim = xp.minimum(left, _RUN_MBS)
        zeros = _take(self.run_zeros, xp.maximum(aim, 0))
        in_prefix = registers.node == self.prefix
        at_least = xp.minimum((count << run) - 1, left)
        straight = run + in_prefix + after(at_least)
        aimed = xp.where(in_prefix, 2 * zeros - run + 1, run) + after(aim)
        reachable = xp.where(in_prefix, run <= zeros, aim + 1 >> run == count)
        in_run = xp.where(reachable, xp.minimum(straight, aimed), straight) + 1
        return xp.where(in_prefix | (registers.node == self.suffix), in_run, here + later)


_NO_GROUP = (1 << _GROUP) - 1


def repeat(body: Callable[[Array, Any], Any], count: int, carry: Any, xp: Any) -> Any:
    """body(place, carry) for the places from `count` - 1 down to 0, places as int32.

    Of JAX's arrays it makes a loop. Written out, steps of the automaton would be compiled into each
    other, which takes minutes.
    """
    if xp is np:
        for place in range(count - 1, -1, -1):
            carry = body(np.int32(place), carry)
        return carry
    from jax import lax  # only where arrays are JAX's already

    return lax.fori_loop(0, count, lambda turn, carry: body(count - 1 - turn, carry), carry)


def _take(table: Array, index: Array) -> Array:
    """Entries of a table; the indices are right."""
    if isinstance(index, np.ndarray | np.integer):
        return table[index]
    xp = index.__array_namespace__()
    return xp.asarray(table).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _place(slot: Array) -> tuple[Array, Array, Array]:
    """A slot's plane, and the shifts of its column and its row."""
    return slot >> _PLANE & 3, (slot >> _COLUMN & 3) << 2, ((slot >> _ROW & 3) << 2) + 16


def _put(words: tuple[Array, ...], slot: Array, value: Array, xp: Any) -> tuple[Array, ...]:
    """The words of the planes with a slot's number in its column and row, unless it is -1."""
    plane, column, row = _place(slot)
    clear = ~(15 << column | 15 << row)
    number = value << column | value << row
    there = value >= 0
    return tuple(
        xp.where(there & (plane == which), word & clear | number, word)
        for which, word in enumerate(words)
    )


@functools.lru_cache(maxsize=64)
def registers_of(columns: int) -> Any:
    """The type of the registers, for a picture of so many columns; 0: one macroblock a slice."""
    names = ["node", "slot", "luma", "chroma", "modes"]
    if columns:
        names += ["mb", "run", "so_far"]
        names += [f"above{column}" for column in range(columns)]
        names += [f"modes{column}" for column in range(columns)]
    return collections.namedtuple("Registers", names)


@functools.lru_cache(maxsize=8)
def automaton(columns: int, mbs: int, slice_mbs: int, mvd_bits: int) -> Automaton:
    """The automaton of slices.

    Args:
      columns, mbs: macroblocks of a row and of a picture.
      slice_mbs: macroblocks of a slice.
      mvd_bits: see `macroblocks.mvd_bits`.
    """
    single = slice_mbs == 1
    codes = _Codes(mvd_bits)
    slots = _Slots(codes, 1 if single else len(VARIANTS))
    nodes = _Nodes(codes, slots, single)
    runs = np.zeros(slice_mbs + 1, np.int32)
    for count in range(1, slice_mbs + 1):
        runs[count] = len(ue(min(count, _RUN_MBS)))
        if count > _RUN_MBS:
            runs[count] += _P_BITS + runs[count - _RUN_MBS - 1]
    heads = [
        [nodes.number(codes.head(references, variant)) for variant in range(len(VARIANTS))]
        for references in range(4)
    ]
    first: list[Hashable] = [codes.head(0, 0)]
    first += [("first run", references) if single else PREFIX for references in range(1, 4)]
    return Automaton(
        table=nodes.table,
        distance=nodes.distance,
        next_slot=slots.after,
        rest=nodes.rest,
        traits=slots.traits,
        spread=_SPREAD,
        begin=nodes.begin(),
        heads=np.array(heads, np.int32),
        first_nodes=np.array([nodes.number(key) for key in first], np.int32),
        later_runs=runs,
        run_zeros=np.array([len(ue(run)) // 2 for run in range(_RUN_MBS + 1)], np.int32),
        column_of=np.arange(mbs, dtype=np.int32) % columns,
        columns=np.arange(0 if single else columns, dtype=np.int32),
        stop=nodes.number(STOP),
        prefix=nodes.number(PREFIX),
        suffix=nodes.number(SUFFIX),
    )


class _Slots:
    """The lists of slots, by key: ("modes", variant, place) and
    ("residual", (left, up), whole, cbp, place); a place of -1 stands before the first."""

    def __init__(self, codes: _Codes, variants: int):
        keys: list[Any] = [_NO_SLOT]
        for variant in range(variants):
            keys += [("modes", variant, place) for place in range(-1, 16)]
        available = sorted({codes.available(variant) for variant in range(variants)})
        for have in available:
            for whole in (False, True):
                for cbp in range(48) if not whole else (0, 15, 16, 31, 32, 47):
                    places = [-1, *_places(whole, cbp), _END]
                    keys += [("residual", have, whole, cbp, place) for place in places]
        self.keys = keys
        self.numbers = {key: number for number, key in enumerate(keys)}
        assert len(keys) <= _SLOT_MASK
        self.after = np.array([self._after(key) for key in keys], np.int32)
        self.traits = np.array([self._traits(key) for key in keys], np.int32)

    def following(self, key: Any) -> Any:
        """The slot after one; None after the last."""
        if key[0] == "modes":
            return (*key[:2], key[2] + 1) if key[2] < 15 else None
        places = [-1, *_places(*key[2:4])]
        at = places.index(key[4]) + 1 if key[4] != _END else len(places)
        return (*key[:4], places[at]) if at < len(places) else None

    def _after(self, key: Any) -> int:
        if key == _NO_SLOT:
            return 0
        following = self.following(key)
        if following is None and key[0] == "modes":
            return _AFTER_MODES + key[1] << _GROUP
        if following is None:
            return self.numbers[(*key[:4], _END)] | _DONE << _GROUP
        plane, column, row, group, both = _describe(following)
        where = column << _COLUMN | row << _ROW | plane << _PLANE
        return self.numbers[following] | where | group << _GROUP | both << _BOTH

    @staticmethod
    def _traits(key: Any) -> int:
        """What of the words a coded_block_pattern keeps: of blocks without it, TotalCoeff is 0."""
        if key[0] != "residual":
            return 15 | 15 << _AFTER_BITS | 1 << _CHROMA_BIT
        whole, cbp = key[2:4]
        coded = [cbp >> quarter & 1 for quarter in range(4)]
        # Before: what a quarter that is not coded hands on to the next ones to the right and down;
        # but Intra_16x16's block of DC comes first, and reads what lies outside.
        before = coded[0] | coded[1] << 1 | coded[0] << 2 | coded[2] << 3
        after = coded[2] | coded[3] << 1 | coded[1] << 2 | coded[3] << 3
        chroma = int(cbp >> 4 == 2)
        return (
            (15 if whole else before)
            | after << _AFTER_BITS
            | chroma << _CHROMA_BIT
            | whole << _WHOLE_BIT
        )


def _places(whole: bool, cbp: int) -> list[int]:
    """Blocks of a residual in order: 0 luma DC, 1-16 luma, 17-18 chroma DC, 19-26 chroma AC."""
    places = [0] if whole else []
    places += [1 + block for block in range(16) if cbp >> block // 4 & 1]
    places += [17, 18] if cbp >> 4 else []
    return places + (list(range(19, 27)) if cbp >> 4 == 2 else [])


def _describe(key: Any) -> tuple[int, int, int, int, int]:
    """Of a slot: (plane, column, row, group, whether it has both neighbours)."""
    place = key[-1]
    if key[0] == "modes":
        x, y = LUMA_X[place], LUMA_Y[place]
        have = VARIANTS[key[1]]
        corner = UP_LEFT if x == y == 0 else LEFT if x == 0 else UP
        samples = LEFT * (x > 0 or have & LEFT > 0) | UP * (y > 0 or have & UP > 0)
        samples |= UP_LEFT * ((x > 0 and y > 0) or have & corner > 0)
        # Above all but the leftmost blocks, what is above is also above and to the left.
        group = _MODE_GROUP + VARIANTS.index(samples)
        return MODES, x, y, group, int(samples & LEFT > 0 and samples & UP > 0)
    (left, up), whole = key[1], key[2]
    if place in (17, 18):
        return LUMA, 0, 0, _CHROMA_DC, 0
    if place < 17:
        block = max(place - 1, 0)
        x, y = LUMA_X[block], LUMA_Y[block]
        group = _DC if place == 0 else _AC if whole else _LUMA
        return LUMA, x, y, group, int((x > 0 or left) and (y > 0 or up))
    plane, x, y = (place - 19) // 4, (place - 19) % 2, (place - 19) // 2 % 2
    both = int((x > 0 or left) and (y > 0 or up))
    return CHROMA, 2 * plane + x, 2 * plane + y, _AC, both


class _Nodes:
    """The table by node and bit, from the keys that can be reached."""

    def __init__(self, codes: _Codes, slots: _Slots, single: bool):
        self._codes, self._slots, self._single = codes, slots, single
        self._numbers: dict[Hashable, int] = {}
        roots: list[Hashable] = [DEAD, STOP, PADDING, PREFIX, SUFFIX]
        roots += [key for group in self._groups() for key in group]
        for references in range(4):
            roots += [codes.head(references, variant) for variant in range(len(VARIANTS))]
            roots += [("first run", references)] if single and references else []
        self._variants = 1 if single else len(VARIANTS)
        entries, todo = [], []
        for key in roots:
            if key not in self._numbers:
                self._numbers[key] = len(self._numbers)
                todo.append(key)
        for key in todo:
            for bit in range(2):
                entry = codes.entry(key, bit)
                if entry.node is not None and entry.node not in self._numbers:
                    self._numbers[entry.node] = len(self._numbers)
                    todo.append(entry.node)
                entries.append(entry)
        assert len(todo) <= _MASK
        self.table = np.array([self._packed(entry) for entry in entries], np.int32)
        # Of each entry that begins a list, the slot before the first one.
        self._before = np.array(
            [self._slots.numbers.get(entry.begins, 0) if entry.begins else 0 for entry in entries]
        )
        self.distance, self.rest = self._distances(entries)

    def number(self, key: Hashable) -> int:
        return self._numbers[key]

    def _packed(self, entry: Entry) -> int:
        if entry.begins is not None:
            # Variants of neighbours that a slice of one macroblock cannot have lead nowhere.
            slot = self._slots.numbers.get(entry.begins)
            return 0 if slot is None else int(self._slots.after[slot]) | 1 << _BEGINS
        node = 0 if entry.node is None else self._numbers[entry.node]
        value = 0 if entry.value is None else 1 + entry.value
        return node | value << _VALUE | entry.ends << _ENDS

    def _groups(self) -> list[list[Hashable]]:
        """By group: the nodes that slots begin with, by class of nC or by expected mode."""
        codes = self._codes
        blocks = [(16, True), (16, False), (15, True)]
        groups = [[codes.block(*block, which) for which in range(4)] for block in blocks]
        groups.append([codes.block(4, False, cavlc.nc_class(-1))])
        groups += [[codes.mode(samples, mode) for mode in range(9)] for samples in VARIANTS]
        groups += [[codes.chroma(variant, False, 0)] for variant in range(len(VARIANTS))]
        groups.append([STOP])
        return groups

    def begin(self) -> np.ndarray:
        """See `Automaton.begin`."""
        table = np.zeros((2, 32, 16, 16), np.int32)
        for group, keys in enumerate(self._groups()):
            for both, column, row in np.ndindex(2, 16, 16):
                if len(keys) == 1:
                    which = 0
                elif len(keys) == 9:
                    which = min(column, row, 8) if both else DC_4X4
                else:
                    total = column + row
                    which = cavlc.nc_class(total + 1 >> 1 if both else total)
                table[both, group, column, row] = self._numbers[keys[which]]
        return table.reshape(-1)

    def _distances(self, entries: list[Entry]) -> tuple[np.ndarray, np.ndarray]:
        """(`distance`, `rest`)."""
        slots = self._slots
        nodes = self.table & _MASK
        begins = self.table >= 1 << _BEGINS
        ends = (self.table >> _ENDS & 1 == 1) & ~begins
        stop, padding = self._numbers[STOP], self._numbers[PADDING]
        rest = np.zeros(len(slots.keys), np.int32)
        distance = np.full(len(self._numbers), _FAR, np.int32)
        for number, key in reversed(list(enumerate(slots.keys))):
            following = slots.following(key) if key != _NO_SLOT else None
            if following is not None:
                bits = _MODE_BITS if key[0] == "modes" else _EMPTY_BITS
                if key[0] == "residual" and following[4] in (17, 18):
                    bits = _CHROMA_DC_BITS
                rest[number] = bits + rest[slots.numbers[following]]
        after_modes = [
            self._numbers[self._codes.chroma(variant, False, 0)]
            for variant in range(self._variants)
        ]
        for variant in range(self._variants):
            # After the modes: intra_chroma_pred_mode 0 and a coded_block_pattern of 0.
            bits = len(ue(0)) + len(ue(cavlc.CBP_INTRA.index(0)))
            for place in range(-1, 16):
                rest[slots.numbers["modes", variant, place]] += bits
        while True:
            known = distance.copy()
            known[[0, stop, padding]] = _FAR, 0, -1
            in_list = rest[self._before]
            onward = np.where(begins, in_list, known[np.where(begins, 0, nodes)])
            onward = np.where(ends, 0, onward)
            shorter = np.minimum(onward.reshape(-1, 2).min(axis=1) + 1, _FAR)
            shorter[[0, stop, padding]] = _FAR, 0, -1
            for name in (PREFIX, SUFFIX):
                shorter[self._numbers[name]] = 0  # counted by the registers
            if np.array_equal(shorter, distance):
                assert (distance[after_modes] == bits).all()
                return distance, rest
            distance = shorter
