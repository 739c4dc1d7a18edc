"""Which tokens of whole code words may follow in a valid H.264 stream, and how many still have to.

The machine accepts the documents that `validity` calls valid, written as code words (`alphabet`).
Raised QPs have no words. Words stand for values, so what may follow does not depend on CAVLC's
choice of tables, and a state is small:

    node      a place in the syntax of a macroblock, with what the next words depend on: which
              neighbours it has, TotalCoeff and the levels or zeros that are left
    slot      the prediction mode or residual block at hand, of a list that the kind of macroblock
              and coded_block_pattern decide
    counts    macroblocks of the slice, slices of the picture, pictures

What a word does at a node is an entry of a table. A word with a place (see `alphabet`) does what
the same word without one does, at that place only.

A token is a string of words. The next word of a document is of one kind, such as a mode of a
certain block, so only the tokens that begin with that kind are followed: a *group*. Those of a
group that begin alike are followed once: `levels` has the beginnings of tokens by their number of
words.

`min_tokens_to_end` counts words, by the shortest way that is known: a later macroblock of an I
slice takes three words, a later P slice a run of skipped ones. Merges are not counted, so a limit
close to the shortest document may be refused although tokens of several words might fit.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.avc import macroblocks
from data_pipelines.representations.avc.codewords import alphabet as words
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
    NUM_LETTERS,
    REF_IDX,
    RUN_BEFORE,
    SIGNS,
    SKIP,
    TOKEN_PLACE,
    TOTAL_ZEROS,
    ZEROS_PLACE,
    run_place,
)
from data_pipelines.representations.avc.codewords.streams import Streams
from data_pipelines.representations.avc.encoder import MAX_REFERENCES
from data_pipelines.representations.avc.macroblocks import (
    LEFT,
    LUMA_X,
    LUMA_Y,
    NEEDS_4X4,
    NEEDS_16X16,
    NEEDS_CHROMA,
    UP,
    UP_LEFT,
)
from data_pipelines.representations.base import UNREACHABLE, Array
from data_pipelines.representations.codewords.alphabet import NUM_BYTES
from data_pipelines.representations.codewords.tokenizer import CodewordTokenizer

# What a macroblock has of its neighbours, by the number of its variant.
_VARIANTS = (0, LEFT, UP, LEFT | UP, LEFT | UP | UP_LEFT)
_WORDS = NUM_LETTERS - NUM_BYTES  # without places
_INTRA_WORDS = 3  # of an I_16x16 macroblock without coefficients: mb_type, mode, coeff_token

# An entry of the table: what kind it is, and a number in the low bits.
_SHIFT = 20
_MASK = (1 << _SHIFT) - 1
# The next node; the end of the slot; the first slot of a list; the end of the macroblock;
# mb_skip_run, which is a number more than what was added; what is added to the next number.
_DEAD, _NODE, _SLOT_ENDS, _SLOT, _ENDS, _SKIPS, _ADDS = range(7)

_NOTHING: Hashable = ("nothing",)  # no word but that of a slice: before and after each
_FIRST_OF_ADDED = -1  # in `_LIMITS`: a node before no number


class State(NamedTuple):
    """The state of the machine, int32 arrays of one shape.

    Attributes:
      node, slot: see the top of this file.
      added: what is added to the next number.
      mb: macroblocks of the slice that are over.
      slice: its place in the picture.
      frame: pictures before this one; -1 before the first.
      number: pictures since the last IDR picture, at most 3.
      inter: 1 in P pictures.
    """

    node: Array
    slot: Array
    added: Array
    mb: Array
    slice: Array
    frame: Array
    number: Array
    inter: Array


class Level(NamedTuple):
    """Beginnings of the tokens of each group that have the same number of words.

    Groups with fewer are filled up with zeros.

    Attributes:
      parent: of each the one without its last word, in the level above, int32 [groups, n].
      word: its last one, int32 [groups, n].
    """

    parent: Array
    word: Array


class CodewordMachine(NamedTuple):
    """Documents of one size. All fields are arrays or numbers, so it is also a pytree.

    Attributes:
      table: entries by node and word, int32 [nodes * words].
      limits: of each node: the largest number that may follow; -1 where none does, int32 [nodes].
      distance: words from a node to the end of its slot, or of the macroblock, int32 [nodes].
      slot_nodes: the node that each slot begins with, int32 [slots].
      slot_ends: the entry at its end, int32 [slots].
      slot_rest: words of the macroblock after it, int32 [slots].
      slot_places: its place, int32 [slots].
      node_places: the same of each node; -1: that of the slot, int32 [nodes].
      plain, places: of each word the same without its place, and the place, int32 [words].
      heads: nodes before mb_type, by references, variant and whether a run may come first, int32
        [4 * 5 * 2].
      amounts: the number that a word stands for, int32 [words without places].
      node_groups: the group of tokens that may follow each node; -1: that of the slot, int32
        [nodes].
      slot_groups: the same of each slot, int32 [slots].
      levels: of the vocabulary: see `Level`.
      beginnings: of each token its number among the beginnings of all levels, one past the last
        for a token of another group, int32 [groups, V].
      pieces: words of each token, -1 after its end, int32 [V, longest].
      later: words of the slices after each in its picture, of I and P pictures, int32 [2 * slices].
      picture: words of the shortest picture.
      columns, mbs, slice_mbs, slices: macroblocks of a row, a picture and a slice; slices.
      min_frames, max_frames: of a document.
    """

    table: Array
    limits: Array
    distance: Array
    slot_nodes: Array
    slot_ends: Array
    slot_rest: Array
    slot_places: Array
    node_places: Array
    plain: Array
    places: Array
    heads: Array
    amounts: Array
    node_groups: Array
    slot_groups: Array
    levels: tuple[Level, ...]
    beginnings: Array
    pieces: Array
    later: Array
    picture: int
    columns: int
    mbs: int
    slice_mbs: int
    slices: int
    min_frames: int
    max_frames: int

    def start(self) -> State:
        """Before the first token; int32 scalars."""
        values = State(0, 0, 0, 0, self.slices - 1, -1, 0, 0)
        return State(*(np.int32(value) for value in values))

    def step(self, state: State, token: Array) -> State:
        """The state after one more token, int32, in range(V); shapes are broadcast."""
        xp = token.__array_namespace__()
        words = xp.asarray(self.pieces)[token]
        shape = (state.node + token).shape
        state = State(*(xp.broadcast_to(field, shape) for field in state))
        after = state._replace(node=xp.where(words[..., 0] < 0, self._wrong, state.node))

        def follow(place: Array, after: State) -> State:
            word = words[..., place]
            stepped = self._follow(after, xp.maximum(word, 0), xp)
            return State(*(xp.where(word >= 0, a, b) for a, b in zip(stepped, after, strict=True)))

        longest = (words >= 0).sum(axis=-1).max()
        if xp is np:
            for place in range(int(longest)):
                after = follow(place, after)
            return after
        import jax

        return jax.lax.fori_loop(0, longest, follow, after)

    def min_tokens_to_end(self, state: State) -> Array:
        """Words within which a document can end, int32; `UNREACHABLE` if it cannot."""
        xp = state.node.__array_namespace__()
        distance = xp.asarray(self.distance)[state.node]
        left = self._mbs_of(state.slice, xp) - state.mb
        inter = state.inter == 1
        # Within a macroblock.
        here = distance + xp.asarray(self.slot_rest)[state.slot]
        here = here + xp.where(inter, self._run(left - 1, xp), _INTRA_WORDS * (left - 1))
        # Before one that a run may skip, or within the words of the run.
        short = left - state.added
        last = xp.minimum(short, DIGIT - 1)
        rest = short - last
        run = xp.where(rest == 0, 1, 1 + _INTRA_WORDS + self._run(rest - 1, xp))
        sixteens = short >> 4
        exact = (state.added & 255 == 0) & (sixteens > 0) & (sixteens < 16)
        run = xp.where(exact, 2, run)
        run = xp.where(state.added == 0, self._run(left, xp), run)
        here = xp.where(self._is_head(state, xp), run, here)
        # After a slice.
        begun = state.frame >= 0
        here = xp.where(state.node == 0, 0, here)
        later = xp.asarray(self.later)[state.inter * self.slices + state.slice]
        frames = xp.maximum(self.min_frames - 1 - state.frame, 0)
        first = xp.where(begun, 0, self._first - self.picture)
        rest = here + later + frames * self.picture + first
        return xp.where(state.node == self._wrong, UNREACHABLE, rest).astype(xp.int32)

    def min_tokens_after(self, state_Bx1: State) -> Array:
        """`min_tokens_to_end` after each token of the vocabulary, int32 [B, V]."""
        xp = state_Bx1.node.__array_namespace__()
        state = state_Bx1
        states: list[State] = []
        group = xp.asarray(self.node_groups)[state.node[:, 0]]
        group = xp.where(group < 0, xp.asarray(self.slot_groups)[state.slot[:, 0]], group)
        for level in self.levels:
            if states:
                parent = xp.asarray(level.parent)[group]
                state = State(*(xp.take_along_axis(field, parent, axis=1) for field in state))
            state = self._follow(state, xp.asarray(level.word)[group], xp)
            states.append(state)
        # All at once: many small operations would take longer.
        every = State(*(xp.concatenate(fields, axis=1) for fields in zip(*states, strict=True)))
        found = self.min_tokens_to_end(every)
        found = xp.concatenate([found, xp.full_like(found[:, :1], UNREACHABLE)], axis=1)
        return xp.take_along_axis(found, xp.asarray(self.beginnings)[group], axis=1)

    @property
    def _wrong(self) -> int:
        return 1

    @property
    def _first(self) -> Array:
        """Words of the shortest IDR picture: the one that a document begins with."""
        return self.slices + _INTRA_WORDS * self.mbs

    def _is_head(self, state: State, xp: Any) -> Array:
        return xp.asarray(self.limits)[state.node] == _RUN_LIMIT

    def _mbs_of(self, slice_: Array, xp: Any) -> Array:
        """Macroblocks of a slice."""
        return xp.minimum(self.mbs - slice_ * self.slice_mbs, self.slice_mbs)

    @staticmethod
    def _run(count: Array, xp: Any) -> Array:
        """Words of a run; 0 for one of 0."""
        words = 1 + xp.where(count >> 8 > 0, 1, 0) + xp.where(count >> 4 & 15 > 0, 1, 0)
        return xp.where(count > 0, words, 0)

    def _follow(self, state: State, word: Array, xp: Any) -> State:
        """The state after a word."""
        is_slice = xp.asarray(self.plain)[word] < words.END - NUM_BYTES
        begun = self._begin(state, word, xp)
        inside = self._inside(state, word, xp)
        return State(*(xp.where(is_slice, a, b) for a, b in zip(begun, inside, strict=True)))

    def _begin(self, state: State, word: Array, xp: Any) -> State:
        """The state after the word of a slice."""
        place = xp.asarray(self.places)[word]
        word = xp.asarray(self.plain)[word]
        same = state.slice + 1 < self.slices
        slice_ = xp.where(same, state.slice + 1, 0)
        frame = xp.where(same, state.frame, state.frame + 1)
        in_row = slice_ * self.slice_mbs % self.columns > 0
        following = xp.where(in_row, words.NEXT, words.ROW) - NUM_BYTES
        idr, p = word == words.IDR - NUM_BYTES, word == words.P - NUM_BYTES
        kind = idr | ((word <= words.P - NUM_BYTES) & (state.frame >= 0))
        kind = kind & ((place == 0) | (place == words.PICTURE_PLACE + frame % words.PICTURES))
        right = xp.where(same, word == following, kind & (frame < self.max_frames))
        right = right & (state.node == 0)
        number = xp.where(idr, 0, xp.minimum(state.number + 1, MAX_REFERENCES))
        inter = xp.where(same, state.inter, xp.where(p, 1, 0))
        number = xp.where(same, state.number, number)
        head = self._head(slice_, 0 * frame, inter, number, 1, xp)
        zero = 0 * (frame + word)
        return State(
            node=xp.where(right, head, self._wrong),
            slot=zero,
            added=zero,
            mb=zero,
            slice=slice_ + zero,
            frame=frame + zero,
            number=number + zero,
            inter=inter + zero,
        )

    def _inside(self, state: State, word: Array, xp: Any) -> State:
        """The state after a word of a macroblock."""
        place = xp.asarray(self.places)[word]
        here = xp.asarray(self.node_places)[state.node]
        here = xp.where(here < 0, xp.asarray(self.slot_places)[state.slot], here)
        in_place = (place == 0) | (place == here)
        word = xp.asarray(self.plain)[word]
        adds = state.added > 0
        # After an addition ones are larger numbers, and may follow where ones may not.
        is_level = (word >= LEVEL - NUM_BYTES) & (word < LEVEL - NUM_BYTES + 2 * DIGIT)
        column = xp.where(adds & is_level, LEVEL - NUM_BYTES + 1, word)
        entry = xp.asarray(self.table)[state.node * _WORDS + column]
        amount = xp.asarray(self.amounts)[word]
        limit = xp.asarray(self.limits)[state.node]
        left = self._mbs_of(state.slice, xp) - state.mb
        run_limit = limit == _RUN_LIMIT
        total = state.added + amount
        kind = entry >> _SHIFT
        is_add, is_skip = kind == _ADDS, kind == _SKIPS
        # What is added leaves a number of 0 more for runs, of 1 more for the others.
        least = xp.where(is_add & ~run_limit, total + 1, total)
        within = least <= xp.where(run_limit, left, limit)
        right = (kind != _DEAD) & in_place & (within | (amount < 0))
        right = right & (~adds | (amount >= 0) & (is_skip | is_add | (amount > 0)))
        ordered = (amount < 256) & (state.added & 255 == 0) & (amount > 0)
        right = right & (~is_add | ordered | ~adds)
        right = right & (~is_skip | (total > 0))

        slot_ends = kind == _SLOT_ENDS
        entry = xp.where(slot_ends, xp.asarray(self.slot_ends)[state.slot], entry)
        kind, number = entry >> _SHIFT, entry & _MASK
        slot = xp.where((kind == _NODE) & ~slot_ends, state.slot, 0)
        slot = xp.where(kind == _SLOT, number, slot)
        node = xp.where(kind == _SLOT, xp.asarray(self.slot_nodes)[slot], number)
        mb = state.mb + xp.where(kind == _ENDS, 1, xp.where(is_skip, total, 0))
        over = mb >= self._mbs_of(state.slice, xp)
        head = self._head(state.slice, mb, state.inter, state.number, xp.where(is_skip, 0, 1), xp)
        node = xp.where((kind == _ENDS) | is_skip, xp.where(over, 0, head), node)
        node = xp.where(is_add, state.node, node)
        keep = is_add & right
        return State(
            node=xp.where(right, node, self._wrong),
            slot=xp.where(right, xp.where(keep, state.slot, slot), 0),
            added=xp.where(keep, total, 0),
            mb=xp.where(right, mb, 0),
            slice=state.slice + 0 * word,
            frame=state.frame + 0 * word,
            number=state.number + 0 * word,
            inter=state.inter + 0 * word,
        )

    def _head(
        self, slice_: Array, mb: Array, inter: Array, number: Array, may_skip: Array, xp: Any
    ) -> Array:
        """The node before a macroblock."""
        first = slice_ * self.slice_mbs
        column = (first + mb) % self.columns
        left, up = (column > 0) & (mb > 0), mb >= self.columns
        corner = (column > 0) & (mb > self.columns)
        variant = xp.where(left, 1, 0) + xp.where(up, 2, 0) + xp.where(corner, 1, 0)
        references = xp.where(inter == 1, number, 0)
        return xp.asarray(self.heads)[(references * len(_VARIANTS) + variant) * 2 + may_skip]


_RUN_LIMIT = -2  # in `limits`: the macroblocks that are left

# Kinds of words that may follow each kind of node.
_ADDS_TO = ("add 16", "add 256")
_FOLLOWING = {
    "nothing": ("slice",),
    "wrong": (),
    "head": ("mb_type", "skip", *_ADDS_TO),
    "ref_idx": ("ref_idx",),
    "mvd": ("mvd", *_ADDS_TO),
    "chroma": ("chroma_mode",),
    "cbp": ("cbp",),
    "mode": ("mode",),
    "block": ("coeff_token",),
    "signs": ("signs",),
    "level": ("level", *_ADDS_TO),
    "zeros": ("total_zeros",),
    "run": ("run_before",),
}


class Group(NamedTuple):
    """The tokens that may follow a kind of node; 0 for any place."""

    kind: str
    place: int


_SIZES = (16, 15, 4)


class _Syntax:
    """Nodes and slots by key: which words follow, and what they lead to.

    Keys of nodes: ("head", references, variant, may skip), ("ref_idx", references), ("mvd", left),
    ("chroma", variant, cbp or None), ("cbp", inter), ("mode", samples), ("block", size),
    ("signs", size, total, ones), ("level", size, total, left, first), ("zeros", size, total),
    ("run", zeros, left).
    """

    def __init__(self, mvd_bits: int, variants: int):
        self._max_mvd = min((1 << mvd_bits - 2) - 1, MAX_SUM)
        self.slots: list[tuple[Any, int, int, int]] = [(_NOTHING, _ENDS << _SHIFT, 0, 0)]
        self._lists: dict[Hashable, int] = {}
        self._numbers: dict[Hashable, int] = {_NOTHING: 0, ("wrong",): 1}
        self._keys: list[Any] = [_NOTHING, ("wrong",)]
        self._variants = variants
        self.heads = [
            self._node(("head", references, variant, may_skip))
            for references in range(MAX_REFERENCES + 1)
            for variant in range(len(_VARIANTS))
            for may_skip in range(2)
        ]
        rows = []
        for key in self._keys:  # grows
            row = np.zeros(_WORDS, np.int32)
            for word, entry in self._row(key):
                row[word - NUM_BYTES] = entry
            rows.append(row)
        self.table = np.stack(rows)
        self.limits = np.array([self._limit(key) for key in self._keys], np.int32)
        self.distance = self._distances()

    def _node(self, key: Hashable) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self._keys)
            self._keys.append(key)
        return self._numbers[key]

    def _to(self, key: Hashable) -> int:
        return _NODE << _SHIFT | self._node(key)

    def _limit(self, key: Any) -> int:
        if key[0] == "head" and key[1] and key[3]:
            return _RUN_LIMIT
        return {"level": MAX_LEVEL, "mvd": self._max_mvd}.get(key[0], _FIRST_OF_ADDED)

    def _row(self, key: Any) -> Any:
        """The words that follow a node, with their entries."""
        if key in (_NOTHING, ("wrong",)):
            return []
        rows = list(getattr(self, f"_{key[0]}")(*key[1:]))
        if self._limit(key) != _FIRST_OF_ADDED:
            rows += [(ADD_16 + index, _ADDS << _SHIFT) for index in range(15)]
            rows += [(ADD_256 + index, _ADDS << _SHIFT) for index in range(8)]
        return rows

    def _head(self, references: int, variant: int, may_skip: int) -> Any:
        have = _VARIANTS[variant]
        if variant >= self._variants:
            return
        if references:
            key = ("ref_idx", references) if references > 1 else ("mvd", 2)
            yield MB_TYPE + INTER_TYPE, self._to(key)
            if may_skip:
                for run in range(DIGIT):
                    yield SKIP + run, _SKIPS << _SHIFT
        else:
            yield MB_TYPE, self._modes(variant)
        for mb_type in range(1, INTER_TYPE):
            if NEEDS_16X16[(mb_type - 1) % 4] & ~have == 0:
                cbp = (mb_type - 1) // 4 % 3 << 4 | (15 if mb_type > 12 else 0)
                yield MB_TYPE + mb_type, self._to(("chroma", variant, cbp))

    def _ref_idx(self, references: int) -> Any:
        return [(REF_IDX + index, self._to(("mvd", 2))) for index in range(references)]

    def _mvd(self, left: int) -> Any:
        after = self._to(("mvd", 1) if left > 1 else ("cbp", 1))
        return [(MVD + index, after) for index in range(2 * DIGIT + 1)]

    def _chroma(self, variant: int, cbp: int | None) -> Any:
        for mode, needs in enumerate(NEEDS_CHROMA):
            if needs & ~_VARIANTS[variant] == 0:
                after = self._to(("cbp", 0)) if cbp is None else self._residual(True, cbp)
                yield CHROMA_MODE + mode, after

    def _cbp(self, inter: int) -> Any:
        del inter
        for cbp in range(48):
            yield CBP + cbp, self._residual(False, cbp) if cbp else _ENDS << _SHIFT

    def _mode(self, samples: int) -> Any:
        for mode, needs in enumerate(NEEDS_4X4):
            if needs & ~samples == 0:
                yield MODE + mode, _SLOT_ENDS << _SHIFT

    def _block(self, size: int) -> Any:
        for value, (total, ones) in enumerate(COEFF_TOKENS):
            if total == 0:
                yield COEFF_TOKEN + value, _SLOT_ENDS << _SHIFT
            elif total <= size:
                after = ("signs", size, total, ones)
                yield COEFF_TOKEN + value, self._to(after) if ones else self._after_signs(*after)

    def _signs(self, size: int, total: int, ones: int) -> Any:
        first = SIGNS + (1 << ones) - 2
        after = self._after_signs(None, size, total, ones)
        return [(first + bits, after) for bits in range(1 << ones)]

    def _after_signs(self, _: Any, size: int, total: int, ones: int) -> int:
        return self._levels(size, total, total - ones, ones < 3)

    def _levels(self, size: int, total: int, left: int, first: bool) -> int:
        if left:
            return self._to(("level", size, total, left, first))
        return self._to(("zeros", size, total)) if total < size else _SLOT_ENDS << _SHIFT

    def _level(self, size: int, total: int, left: int, first: bool) -> Any:
        after = self._levels(size, total, left - 1, False)
        for sign in range(2):
            for value in range(2 if first else 1, DIGIT + 1):
                yield LEVEL + DIGIT * sign + value - 1, after

    def _zeros(self, size: int, total: int) -> Any:
        limit = size - total
        return [(TOTAL_ZEROS + zeros, self._runs(zeros, total - 1)) for zeros in range(limit + 1)]

    def _runs(self, zeros: int, left: int) -> int:
        return self._to(("run", zeros, left)) if zeros and left else _SLOT_ENDS << _SHIFT

    def _run(self, zeros: int, left: int) -> Any:
        return [
            (RUN_BEFORE + run, self._runs(zeros - run, left - 1))
            for run in range(min(zeros, 14) + 1)
        ]

    # Slots

    def _begin_list(
        self, name: Hashable, nodes: list[Hashable], places: list[int], end: int, rest: int
    ) -> int:
        """The entry that begins a list of slots.

        places: of the slots. end: the entry at its end. rest: words after
        it.
        """
        if name not in self._lists:
            first = self._lists[name] = len(self.slots)
            for number, (node, place) in enumerate(zip(nodes, places, strict=True)):
                self._node(node)
                last = number + 1 == len(nodes)
                after = end if last else _SLOT << _SHIFT | first + number + 1
                self.slots.append((node, after, len(nodes) - 1 - number + rest, place))
        return _SLOT << _SHIFT | self._lists[name]

    def _modes(self, variant: int) -> int:
        have = _VARIANTS[variant]
        nodes: list[Hashable] = []
        for x, y in zip(LUMA_X, LUMA_Y, strict=True):
            corner = UP_LEFT if x == y == 0 else LEFT if x == 0 else UP
            samples = LEFT * (x > 0 or have & LEFT > 0) | UP * (y > 0 or have & UP > 0)
            samples |= UP_LEFT * ((x > 0 and y > 0) or have & corner > 0)
            nodes.append(("mode", samples))
        places = [MODE_PLACE + place for place in range(16)]
        after = self._to(("chroma", variant, None))
        return self._begin_list(("modes", variant), nodes, places, after, 2)

    def _residual(self, whole: bool, cbp: int) -> int:
        blocks = [(TOKEN_PLACE, 16)] if whole else []
        luma = 15 if whole else 16
        blocks += [(LUMA_PLACE + n, luma) for n in range(16) if cbp >> n // 4 & 1]
        blocks += [(CHROMA_DC_PLACE + n, 4) for n in range(2)] if cbp >> 4 else []
        blocks += [(CHROMA_AC_PLACE + n, 15) for n in range(8)] if cbp >> 4 == 2 else []
        nodes: list[Hashable] = [("block", size) for _, size in blocks]
        places = [place for place, _ in blocks]
        return self._begin_list(("residual", whole, cbp), nodes, places, _ENDS << _SHIFT, 0)

    def numbers_of_slots(self) -> tuple[np.ndarray, ...]:
        """The fields `slot_nodes`, `slot_ends`, `slot_rest` and `slot_places`."""
        nodes, *others = zip(*self.slots, strict=True)
        numbers = [self._numbers[node] for node in nodes]
        return tuple(np.array(values, np.int32) for values in (numbers, *others))

    def places(self) -> np.ndarray:
        """The field `node_places`."""

        def place(kind: str, *values: int) -> int:
            match kind:
                case "mode" | "block":
                    return -1
                case "level":
                    return LEVEL_PLACE + values[2] - 1
                case "zeros":
                    return ZEROS_PLACE + values[1] - 1
                case "run":
                    return int(run_place(*values))
            return 0

        return np.array([place(*key) for key in self._keys], np.int32)

    def groups(self, places: bool) -> tuple[np.ndarray, np.ndarray, list[Group]]:
        """The fields `node_groups` and `slot_groups`, and all groups by their number.

        places: whether words have places, so that each place has a group.
        """
        found: dict[Group, int] = {}

        def group(kind: str, place: int) -> int:
            return found.setdefault(Group(kind, place if places else 0), len(found))

        of_nodes = [
            -1 if place < 0 else group(key[0], place)
            for key, place in zip(self._keys, self.places().tolist(), strict=True)
        ]
        of_slots = [group(node[0], place) for node, _, _, place in self.slots]
        return np.array(of_nodes, np.int32), np.array(of_slots, np.int32), list(found)

    def _distances(self) -> np.ndarray:
        nodes, _, rest, _ = self.numbers_of_slots()
        kind, number = self.table >> _SHIFT, self.table & _MASK
        distance = np.full(len(self._keys), UNREACHABLE, np.int64)
        slot = np.where(kind == _SLOT, number, 0)
        while True:
            known = np.minimum(distance, UNREACHABLE)
            ways = np.select(
                [kind == _NODE, (kind == _SLOT_ENDS) | (kind == _ENDS), kind == _SLOT],
                [known[np.where(kind == _NODE, number, 0)], 0, known[nodes[slot]] + rest[slot]],
                UNREACHABLE,
            )
            shorter = np.minimum(1 + ways.min(axis=1), UNREACHABLE)
            if np.array_equal(shorter, distance):
                return distance.astype(np.int32)
            distance = shorter


@functools.lru_cache(maxsize=8)
def machine(
    tokenizer: CodewordTokenizer[Streams], min_frames: int, max_frames: int
) -> CodewordMachine:
    """The machine of documents of these frames.

    Raises ValueError for slices of so many macroblocks that a run of them has no words.
    """
    settings = tokenizer.streams.settings
    columns, rows = -(-settings.width // 16), -(-settings.height // 16)
    slice_mbs = settings.slice_mbs or settings.mbs
    if slice_mbs >= MAX_SUM:
        raise ValueError(
            f"found slices of {slice_mbs:,} macroblocks; a run of {MAX_SUM:,} or more skipped ones "
            "has no code words: set slice_mbs, or sample without --constrain"
        )
    syntax = _Syntax(macroblocks.mvd_bits(columns, rows), 1 if slice_mbs == 1 else len(_VARIANTS))
    slot_nodes, slot_ends, slot_rest, slot_places = syntax.numbers_of_slots()
    plain, word_places = _words_of(tokenizer.streams)
    slices = settings.slices
    mbs = np.minimum(settings.mbs - np.arange(slices) * slice_mbs, slice_mbs)
    words = np.stack([1 + _INTRA_WORDS * mbs, 1 + _runs_words(mbs)])
    later = words[:, ::-1].cumsum(axis=1)[:, ::-1] - words
    node_groups, slot_groups, groups = syntax.groups(tokenizer.streams.places)
    levels, beginnings, pieces = _levels(tokenizer, groups)
    return CodewordMachine(
        table=syntax.table.ravel(),
        limits=syntax.limits,
        distance=syntax.distance,
        slot_nodes=slot_nodes,
        slot_ends=slot_ends,
        slot_rest=slot_rest,
        slot_places=slot_places,
        node_places=syntax.places(),
        plain=plain,
        places=word_places,
        heads=np.array(syntax.heads, np.int32),
        amounts=_amounts(),
        node_groups=node_groups,
        slot_groups=slot_groups,
        levels=levels,
        beginnings=beginnings,
        pieces=pieces,
        later=later.ravel().astype(np.int32),
        picture=int(words[1].sum()),
        columns=columns,
        mbs=settings.mbs,
        slice_mbs=slice_mbs,
        slices=slices,
        min_frames=min_frames,
        max_frames=max_frames,
    )


def _words_of(streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """The fields `plain` and `places`."""
    letters, places = words.without_places()
    own = slice(NUM_BYTES, len(streams.alphabet))
    if not streams.places:
        places = np.zeros_like(places)
    return letters[own] - NUM_BYTES, places[own]


def _runs_words(counts: np.ndarray) -> np.ndarray:
    return 1 + (counts >> 8 > 0) + (counts >> 4 & 15 > 0)


def _amounts() -> np.ndarray:
    """The field `amounts`; -1 for a word that is no number."""
    amounts = np.full(_WORDS, -1, np.int32)
    for index in range(DIGIT):
        amounts[SKIP - NUM_BYTES + index] = index
        for sign in range(2):
            amounts[MVD - NUM_BYTES + 1 + DIGIT * sign + index] = index + 1
            amounts[LEVEL - NUM_BYTES + DIGIT * sign + index] = index + 1
    amounts[MVD - NUM_BYTES] = 0
    amounts[ADD_16 - NUM_BYTES : ADD_16 - NUM_BYTES + 15] = 16 * np.arange(1, 16)
    amounts[ADD_256 - NUM_BYTES : ADD_256 - NUM_BYTES + 8] = 256 * np.arange(1, 9)
    return amounts


def _levels(
    tokenizer: CodewordTokenizer[Streams], groups: Sequence[Group]
) -> tuple[tuple[Level, ...], np.ndarray, np.ndarray]:
    """The fields `levels`, `beginnings` and `pieces`. Tokens with a byte count as without words."""
    pieces = [
        tuple((letters - NUM_BYTES).tolist()) if (letters >= NUM_BYTES).all() else ()
        for letters in tokenizer.token_letters
    ]
    longest = max(map(len, pieces))
    kinds = [letter["kind"] for letter in tokenizer.streams.alphabet.describe()[NUM_BYTES:]]
    _, places = _words_of(tokenizer.streams)
    tries = []
    for group in groups:
        begins = [
            kind in _FOLLOWING[group.kind] and (place == 0 or group.place in (0, place))
            for kind, place in zip(kinds, places.tolist(), strict=True)
        ]
        tries.append(_trie([piece if piece and begins[piece[0]] else () for piece in pieces]))
    depth = max(len(trie) for trie, _ in tries)
    widths = [
        max(len(trie[level]) if level < len(trie) else 0 for trie, _ in tries)
        for level in range(depth)
    ]
    levels = tuple(Level(*np.zeros((2, len(groups), width), np.int32)) for width in widths)
    starts = np.cumsum([0, *widths])
    beginnings = np.full((len(groups), len(pieces)), starts[-1], np.int32)
    for number, (trie, ends) in enumerate(tries):
        for level, nodes in zip(levels, trie, strict=False):
            level.parent[number, : len(nodes)], level.word[number, : len(nodes)] = zip(
                *nodes, strict=True
            )
        for token, (length, node) in ends.items():
            beginnings[number, token] = starts[length] + node
    padded = np.full((len(pieces), longest), -1, np.int32)
    for token, piece in enumerate(pieces):
        padded[token, : len(piece)] = piece
    return levels, beginnings, padded


def _trie(
    pieces: Sequence[tuple[int, ...]],
) -> tuple[list[list[tuple[int, int]]], dict[int, tuple[int, int]]]:
    """(parent and last word of the beginnings of each length, length - 1 and number of each piece).

    Empty pieces are left out.
    """
    levels: list[list[tuple[int, int]]] = []
    above: dict[tuple[int, ...], int] = {(): 0}
    ends = {}
    for length in range(1, max(map(len, pieces)) + 1):
        found = sorted({piece[:length] for piece in pieces if len(piece) >= length})
        levels.append([(above[piece[:-1]], piece[-1]) for piece in found])
        above = {piece: number for number, piece in enumerate(found)}
        for token, piece in enumerate(pieces):
            if len(piece) == length:
                ends[token] = (length - 1, above[piece])
    return levels, ends
