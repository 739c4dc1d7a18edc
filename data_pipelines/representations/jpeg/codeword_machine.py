"""Which tokens of whole code words may follow in a valid JPEG stream, and how many still have to.

The machine accepts the documents that `validity` calls valid, written as code words (`codewords`);
single bytes are accepted in a header only, where they state the size. A document is

    header, then for each segment its MCUs and a marker (RST0-RST7 in turn, EOI after the last)

and an MCU a row of blocks. A state is a *class*, a number k and the MCUs and segments left:

    DC(b)         before the DC code of block b of the MCU
    AC(b)         before an AC code of block b; k is its next coefficient, 1-63
    RUN(b)        the same after a run of sixteen zeros: EOB is not allowed
    PENDING(p,b)  before the amplitude of the last code, in one or two words; k is the coefficient
                  after it, 1-64
    header, end   before a letter of the header; after EOI

What a token does depends on its letters and on the class, and on k in two ways alone: k has to lie
within bounds, and where the token does not leave the block that it begins in, its coefficients are
added to k. So tables by class and token hold everything. MCUs and segments are counted, as in
`byte_machine`. For the whole vocabulary `min_tokens_after` reads rows of two tables of bounds: of
k, of the MCUs and segments that are left, and of the next marker's number. These are fields of one
integer, each below a zero bit that a subtraction would borrow from, and so compared together. A
third table has what a token adds to the tokens that are left.

`min_tokens_to_end` is a bound: it counts the fewest tokens of the MCUs that are left if no token
reaches from one MCU into another, and one token for each marker. A document can always end within
so many tokens. With merges across MCUs or markers a shorter end may exist, and is not counted on.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.base import UNREACHABLE, Array
from data_pipelines.representations.codewords.tokenizer import CodewordTokenizer
from data_pipelines.representations.jpeg import codewords
from data_pipelines.representations.jpeg.codeword_streams import Streams
from data_pipelines.representations.jpeg.codewords import (
    AC,
    AMPLITUDE,
    DC,
    EOI_CODE,
    FIRST_PART,
    MARKER,
    RST0,
)
from data_pipelines.representations.jpeg.huffman import ZRL

# Amplitudes to come, in bits: the next word and the one after it.
_PENDING = [(bits, 0) for bits in codewords.AMPLITUDE_BITS]
_PENDING += [(first, bits - first) for bits, first in FIRST_PART.items()]
_PENDING_OF = {sum(parts): index for index, parts in enumerate(_PENDING)}
_AT_DC, _AT_AC, _AFTER_RUN, _AT_PENDING = range(4)  # kinds of classes, `_BLOCKS_OF` each
_KINDS = _AT_PENDING + len(_PENDING)

# Bits of the first table: of what has to be so before a token.
#   0-6 smallest k; 7-13 largest k; 14-18 MCUs ended before the first marker, or at all;
#   19-22 restart markers; 23-26 number of the first marker if it is one (else `_NO_RESTART`);
#   27 EOI
# Bits of the second table: of what is so after it.
#   0-6 k, or what is added to it; 7 added; 8 the block is full where k becomes 64;
#   9-13 MCUs ended after the last restart marker; 14 it ends at the end of an MCU; 15- class
# Fields of the bounds: (shift, largest value); the bit above each is free.
_K, _MCUS, _SEGMENTS, _NUMBER = (0, 127), (8, 63), (15, 31), (21, 7)
_GUARDS = sum((largest + 1) << shift for shift, largest in (_K, _MCUS, _SEGMENTS, _NUMBER))
_FILLS = 1 << 26  # in the upper bounds: at the largest k the block is full, see `full_tokens`
_NO_RESTART = 15
_MAX_LETTERS = 31  # of a token, so that counts fit
_IMPOSSIBLE = 1  # k from 1 to 0


class State(NamedTuple):
    """The state of the machine, int32 arrays of one shape.

    Attributes:
      at: the class.
      k: coefficient; 0 in a class without.
      mcus: not yet ended in this segment.
      segments: after this one.
    """

    at: Array
    k: Array
    mcus: Array
    segments: Array


class CodewordMachine(NamedTuple):
    """Documents of one size. All fields are arrays or numbers, so it is also a pytree.

    Attributes:
      before: what a token needs, by class and token, int32 [classes, V]; see above.
      after: what it leads to, int32 [classes, V].
      lowest, highest: bounds of a state by class and token, fields as above, int32 [classes, V].
      added: what a token adds to the tokens that are left besides the class's own, int32
        [classes, V].
      full_tokens: the same where it fills its block up, int32 [classes].
      class_tokens: tokens from a class to the end of its MCU, int32 [classes].
      first: the class that a document begins in.
      blocks: of an MCU.
      mcu_tokens: of the shortest MCU.
      segments: of the image.
      segment_mcus: MCUs in each segment but the last.
      last_mcus: MCUs in the last segment.
    """

    before: Array
    after: Array
    lowest: Array
    highest: Array
    added: Array
    full_tokens: Array
    class_tokens: Array
    first: int
    blocks: int
    mcu_tokens: int
    segments: int
    segment_mcus: int
    last_mcus: int

    def start(self) -> State:
        """Before the first token; int32 scalars."""
        mcus = self._mcus_of(self.segments - 1, np)
        values = (self.first, 0, mcus, self.segments - 1)
        return State(*(np.int32(value) for value in values))

    def step(self, state: State, token: Array) -> State:
        """The state after one more token, int32, in range(V); shapes are broadcast."""
        xp = token.__array_namespace__()
        before = xp.asarray(self.before)[state.at, token]
        after = xp.asarray(self.after)[state.at, token]
        allowed, state = self._follow(state, before, after, xp)
        state = State(*(xp.where(allowed, field, 0) for field in state))
        return state._replace(at=xp.where(allowed, state.at, self._wrong))

    def min_tokens_to_end(self, state: State) -> Array:
        """Tokens within which a document can end, int32; `UNREACHABLE` if it cannot."""
        xp = state.at.__array_namespace__()
        here = xp.asarray(self.class_tokens)[state.at]
        rest = xp.where(state.mcus > 0, here, 0) + self._tokens_after_mcu(state, xp)
        rest = xp.where(state.at == self._end, 0, rest)
        return xp.where(state.at == self._wrong, UNREACHABLE, rest)

    def min_tokens_after(self, state_Bx1: State) -> Array:
        """`min_tokens_to_end` after each token of the vocabulary, int32 [B, V]."""
        xp = state_Bx1.at.__array_namespace__()
        at, (k, mcus, segments) = state_Bx1.at[:, 0], state_Bx1[1:]
        lowest, highest = xp.asarray(self.lowest)[at], xp.asarray(self.highest)[at]
        fields = (
            k << _K[0]
            | xp.minimum(mcus, _MCUS[1]) << _MCUS[0]
            | xp.minimum(segments, _SEGMENTS[1]) << _SEGMENTS[0]
            | (self.segments - 1 - segments) % 8 << _NUMBER[0]
        )
        within = ((fields | _GUARDS) - lowest) & (highest - fields) & _GUARDS
        full = ((highest ^ fields) & (_FILLS | _K[1])) == _FILLS
        added = xp.where(
            full, xp.asarray(self.full_tokens)[at][:, None], xp.asarray(self.added)[at]
        )
        rest = added + self._tokens_after_mcu(state_Bx1, xp)
        return xp.where(within == _GUARDS, rest, UNREACHABLE)

    def _tokens_after_mcu(self, state: State, xp: Any) -> Array:
        """Tokens after the MCU that the state is in; after the segment, less one MCU of it."""
        mcus = xp.maximum(state.mcus - 1, 0) * self.mcu_tokens + 1
        return mcus + self._segments_tokens(state.segments, xp)

    @property
    def _end(self) -> int:
        return len(self.class_tokens) - 2

    @property
    def _wrong(self) -> int:
        return len(self.class_tokens) - 1

    def _follow(self, state: State, before: Array, after: Array, xp: Any) -> tuple[Array, State]:
        """(whether a token with these entries may follow, the state after it)."""
        k, mcus, segments = state[1:]
        lowest, highest = before & 127, before >> 7 & 127
        ended, restarts, first = before >> 14 & 31, before >> 19 & 15, before >> 23 & 15
        is_end = (before >> 27 & 1) == 1
        k_after, ended_after = after & 127, after >> 9 & 31
        at_mcu_end = (after >> 14 & 1) == 1
        class_after = after >> 15
        allowed = (lowest <= k) & (k <= highest)

        # Within its first block: where that is full, the next one begins.
        k_after = k_after + xp.where((after >> 7 & 1) == 1, k, 0)
        full = ((after >> 8 & 1) == 1) & (k_after == 64)
        next_block = class_after - self.blocks + 1  # of AC(b) -> DC(b + 1)
        last_block = full & (next_block == self.blocks)
        class_after = xp.where(full, xp.where(last_block, 0, next_block), class_after)
        k_after = xp.where(full, 0, k_after)
        ended = ended + xp.where(last_block, 1, 0)
        at_mcu_end = at_mcu_end | last_block

        # Segments: the first marker after its last MCU, with the right number.
        marked = is_end | (restarts > 0)
        segments_after = segments - restarts
        number = (self.segments - 1 - segments) % 8
        allowed = allowed & ((first == _NO_RESTART) | (first == number)) & (segments_after >= 0)
        allowed = allowed & (~is_end | (segments_after == 0)) & (~marked | (ended == mcus))
        fresh = xp.where(is_end, 0, self._mcus_of(segments_after, xp))
        mcus_after = xp.where(marked, fresh - ended_after, mcus - ended)
        # Nothing but a marker follows the last MCU.
        allowed = allowed & ((mcus_after > 0) | ((mcus_after == 0) & at_mcu_end))
        return allowed, State(class_after, k_after, mcus_after, segments_after)

    def _mcus_of(self, segments_after: Array, xp: Any) -> Array:
        """MCUs of the segment that so many follow."""
        return xp.where(segments_after == 0, self.last_mcus, self.segment_mcus)

    def _segments_tokens(self, segments: Array, xp: Any) -> Array:
        """Tokens of so many whole segments up to the end, each with its marker."""
        segment, last = (mcus * self.mcu_tokens + 1 for mcus in (self.segment_mcus, self.last_mcus))
        return xp.where(segments > 0, (segments - 1) * segment + last, 0)


def machine(tokenizer: CodewordTokenizer[Streams], size: tuple[int, int]) -> CodewordMachine:
    """The machine of documents of one size (width, height).

    Raises ValueError for a tokenizer with tokens of more than 31 code words.
    """
    settings = tokenizer.streams.settings
    mcus = settings.geometry(*size).mcus
    interval = settings.restart_interval or mcus
    segments = -(-mcus // interval)
    last = mcus - (segments - 1) * interval
    made = _tables(
        tokenizer,
        tuple(tokenizer.streams.header_letters(size)),
        interval if settings.restart_interval else 0,
        last,
    )
    blocks = len(settings.block_components)
    return CodewordMachine(
        *made,
        first=_KINDS * blocks if tokenizer.streams.header_parts else 0,
        blocks=blocks,
        mcu_tokens=int(made.class_tokens[0]),
        segments=segments,
        segment_mcus=interval,
        last_mcus=last,
    )


class _Tables(NamedTuple):
    """The first fields of a machine."""

    before: np.ndarray
    after: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    added: np.ndarray
    full_tokens: np.ndarray
    class_tokens: np.ndarray


@functools.lru_cache(maxsize=8)
def _tables(
    tokenizer: CodewordTokenizer[Streams], header: tuple[int, ...], interval: int, last_mcus: int
) -> _Tables:
    """Tables for images of some size; interval: 0 without restart markers."""
    pieces = tokenizer.token_letters
    longest = max(map(len, pieces))
    if longest > _MAX_LETTERS:
        raise ValueError(
            f"the tokenizer has a token of {longest} code words; constraining documents takes at "
            f"most {_MAX_LETTERS}: train it with shorter pieces"
        )
    simulation = _Simulation.begin(tokenizer, header, interval, last_mcus)
    letters = np.full((longest, len(pieces)), -1, np.int32)
    for token, piece in enumerate(pieces):
        letters[: len(piece), token] = piece
    for row in letters:
        simulation.take(row)
    before, after = simulation.entries(tokenizer.is_content)
    class_tokens = _class_tokens(before, after, simulation)
    lowest, highest = _bounds(before, after, interval, last_mcus)
    added = _added(before, after, class_tokens, interval, last_mcus)
    next_dc = np.append(
        class_tokens[1 : simulation.blocks], 0
    )  # of the next block, in the same MCU
    in_blocks = _KINDS * simulation.blocks
    full = np.zeros(len(class_tokens), np.int32)
    full[:in_blocks] = np.tile(next_dc, _KINDS)
    return _Tables(before, after, lowest, highest, added, full, class_tokens)


@dataclasses.dataclass(eq=False)
class _Simulation:
    """All tokens, taken letter by letter from all classes. Arrays [classes, V].

    Until a token leaves the block that it begins in, k is not known: `relative` is set, `k` counts
    what is added to it, and `lowest` and `highest` bound it.
    """

    meaning: codewords.Letters
    table_of: np.ndarray  # of the tables of each block
    header: np.ndarray
    interval: int
    last_mcus: int

    alive: np.ndarray
    block: np.ndarray
    k: np.ndarray
    relative: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    run: np.ndarray  # after a run of sixteen zeros
    pending: np.ndarray  # index into `_PENDING`, or -1
    position: np.ndarray  # in the header
    ended: np.ndarray  # MCUs since the last marker
    ended_first: np.ndarray  # MCUs before the first marker
    restarts: np.ndarray
    first: np.ndarray
    over: np.ndarray  # after EOI

    @classmethod
    def begin(
        cls,
        tokenizer: CodewordTokenizer[Streams],
        header: tuple[int, ...],
        interval: int,
        last_mcus: int,
    ) -> _Simulation:
        """Before the first letter."""
        streams = tokenizer.streams
        table_of = np.array(codewords.block_table_indices(streams.settings))
        blocks = len(table_of)
        kind, block = np.divmod(np.arange(_KINDS * blocks), blocks)
        rest = len(header)
        positions = np.concatenate([np.full(len(kind), rest), np.arange(rest)])
        kind = np.concatenate([kind, np.full(rest, _AT_DC)])
        block = np.concatenate([block, np.zeros(rest, int)])
        relative = kind != _AT_DC
        shape = (len(kind), tokenizer.vocab_size)

        def rows(values: Any) -> np.ndarray:
            return np.repeat(np.asarray(values)[:, None], shape[1], axis=1)

        def filled(value: int) -> np.ndarray:
            return np.full(shape, value, np.int32)

        return cls(
            meaning=streams.alphabet.letters,
            table_of=table_of,
            header=np.array(header, np.int32),
            interval=interval,
            last_mcus=last_mcus,
            alive=np.ones(shape, bool),
            block=rows(block.astype(np.int32)),
            k=filled(0),
            relative=rows(relative),
            lowest=rows(np.where(relative, 1, 0).astype(np.int32)),
            highest=rows(
                np.where((kind == _AT_AC) | (kind == _AFTER_RUN), 63, 64).astype(np.int32)
            ),
            run=rows(kind == _AFTER_RUN),
            pending=rows(np.where(kind >= _AT_PENDING, kind - _AT_PENDING, -1).astype(np.int32)),
            position=rows(positions.astype(np.int32)),
            ended=filled(0),
            ended_first=filled(0),
            restarts=filled(0),
            first=filled(_NO_RESTART),
            over=np.zeros(shape, bool),
        )

    @property
    def blocks(self) -> int:
        """Blocks of an MCU."""
        return len(self.table_of)

    def take(self, letter: np.ndarray) -> None:
        """Takes one letter of each token, int32 [V]; -1 where it has no more."""
        there = letter >= 0
        active = self.alive & there
        letter = np.where(there, letter, 0)
        kind = self.meaning.kind[letter]
        self.alive &= ~(active & self.over)

        in_header = active & (self.position < len(self.header))
        wanted = np.append(self.header, -1)[self.position]
        self.alive &= ~in_header | (wanted == letter)
        self.position += in_header

        active &= self.alive & ~in_header
        is_amplitude = active & (kind == AMPLITUDE)
        self.alive &= ~active | (is_amplitude == (self.pending >= 0))
        self.alive &= ~active | (kind >= MARKER)
        self._take_amplitude(is_amplitude & self.alive, self.meaning.length[letter])

        code = active & ~is_amplitude & self.alive
        self._take_ac(code & (kind == AC), letter)
        other = code & (kind != AC)
        # What does not belong to a block follows one that is full, or at its end.
        full = other & self.relative
        self.lowest[full] = np.maximum(self.lowest, 64 - self.k)[full]
        self.highest[full] = np.minimum(self.highest, 64 - self.k)[full]
        self._end_block(full)
        self.alive &= ~other | (self.k == 0)
        self._take_dc(other & self.alive & (kind == DC), letter)
        self._take_marker(other & self.alive & (kind == MARKER), self.meaning.value[letter])
        self._end_block(self.alive & ~self.relative & (self.pending < 0) & (self.k == 64))
        self.alive &= self.lowest <= self.highest

    def _end_block(self, where: np.ndarray) -> None:
        self.block += where
        last = where & (self.block == self.blocks)
        self.block[last] = 0
        self.ended += last
        self.k[where] = 0
        self.relative &= ~where
        self.run &= ~where

    def _take_amplitude(self, where: np.ndarray, bits: np.ndarray) -> None:
        first, second = np.array([*_PENDING, (0, 0)]).T
        self.alive &= ~where | (first[self.pending] == bits)
        after = np.array([_PENDING_OF.get(bits, -1) for bits in range(8)])[second[self.pending]]
        self.pending = np.where(where, after, self.pending).astype(np.int32)

    def _take_dc(self, where: np.ndarray, letter: np.ndarray) -> None:
        self.alive &= ~where | (self.table_of[self.block] == self.meaning.table[letter])
        self.k[where] = 1
        self._pend(where, letter)

    def _take_ac(self, where: np.ndarray, letter: np.ndarray) -> None:
        symbol, advance = self.meaning.symbol[letter], self.meaning.advance[letter]
        is_run = symbol == ZRL
        is_end = advance == 0
        right = self.table_of[self.block] == self.meaning.table[letter]
        right = right & (self.relative | (self.k > 0)) & ~(is_end & self.run)
        # The last k from which the letter stays within the block.
        limit = np.where(is_end | is_run, 63, 64) - self.k - advance
        self.highest = np.where(
            where & self.relative, np.minimum(self.highest, limit), self.highest
        ).astype(np.int32)
        self.alive &= ~where | (right & (self.relative | (limit >= 0)))
        self.k += np.where(where, advance, 0)
        self.run = np.where(where, is_run, self.run)
        self._pend(where, letter)
        self._end_block(where & is_end & self.alive)

    def _pend(self, where: np.ndarray, letter: np.ndarray) -> None:
        size = self.meaning.pending[letter]
        index = np.array([_PENDING_OF.get(bits, -1) for bits in range(12)])[size]
        self.pending = np.where(where, index, self.pending).astype(np.int32)

    def _take_marker(self, where: np.ndarray, code: np.ndarray) -> None:
        is_end = code == EOI_CODE
        number = code - RST0
        begun = self.restarts > 0
        right = (self.block == 0) & (is_end | (self.interval > 0))
        mcus = np.where(is_end, self.last_mcus, self.interval)
        following = (self.first + self.restarts) % 8
        right &= ~begun | ((self.ended == mcus) & (is_end | (number == following)))
        self.alive &= ~where | right
        self.ended_first = np.where(where & ~begun, self.ended, self.ended_first)
        self.first = np.where(where & ~begun & ~is_end, number, self.first)
        self.restarts += where & ~is_end
        self.over |= where & is_end
        self.ended[where] = 0

    def entries(self, content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`before` and `after` of a machine, two classes without a way on (end, wrong) at last."""
        marked = self.over | (self.restarts > 0)
        before = (
            self.lowest
            | self.highest << 7
            | np.where(marked, self.ended_first, self.ended) << 14
            | self.restarts << 19
            | self.first << 23
            | self.over << 27
        )
        in_header = self.position < len(self.header)
        at_dc = ~self.relative & (self.k == 0)
        at = np.select(
            [in_header, self.over, at_dc, self.pending >= 0, self.run],
            [
                _KINDS * self.blocks + self.position,
                len(self.alive),
                self.block,
                (_AT_PENDING + self.pending) * self.blocks + self.block,
                _AFTER_RUN * self.blocks + self.block,
            ],
            _AT_AC * self.blocks + self.block,
        )
        may_fill = self.relative & (self.pending < 0) & ~self.run
        after = (
            self.k
            | self.relative << 7
            | may_fill << 8
            | np.where(marked, self.ended, 0) << 9
            | (self.over | (at_dc & (self.block == 0) & ~in_header)) << 14
            | at << 15
        )
        before = np.where(self.alive & content, before, _IMPOSSIBLE)
        nothing = np.full((2, before.shape[1]), _IMPOSSIBLE)
        return (
            np.concatenate([before, nothing]).astype(np.int32),
            np.concatenate([after, 0 * nothing]).astype(np.int32),
        )


def _class_tokens(before: np.ndarray, after: np.ndarray, simulation: _Simulation) -> np.ndarray:
    """Tokens within which each class reaches the end of its MCU, int32 [classes].

    From DC(b), and with EOB from AC(b), by the best token that does not leave the MCU; from the
    others by one coefficient of one amplitude bit, or the amplitudes that are pending.
    """
    blocks = simulation.blocks
    tokens = np.full(len(before), UNREACHABLE, np.int64)

    def best(row: int, lowest: int, highest: int) -> int:
        entry, then = before[row], after[row]
        usable = ((entry & 127) <= lowest) & ((entry >> 7 & 127) >= highest)
        usable &= (entry >> 19 == _NO_RESTART << 4) & ((then >> 7 & 1) == 0)
        ended = entry >> 14 & 31
        inside = usable & (ended == 0)
        whole = usable & (ended == 1) & ((then >> 14 & 1) == 1)
        ways = np.where(whole, 0, np.where(inside, tokens[then >> 15], UNREACHABLE))
        return 1 + int(ways.min())

    for block in reversed(range(blocks)):
        next_dc = int(tokens[block + 1]) if block + 1 < blocks else 0
        end = best(_AT_AC * blocks + block, 1, 63)
        tokens[_AT_AC * blocks + block] = end
        then = max(end, next_dc)
        tokens[_AFTER_RUN * blocks + block] = 1 + then
        for index, (_, second) in enumerate(_PENDING):
            tokens[(_AT_PENDING + index) * blocks + block] = 1 + (second > 0) + then
        tokens[block] = best(block, 0, 0)
    for position in range(len(simulation.header)):
        tokens[_KINDS * blocks + position] = len(simulation.header) - position + tokens[0]
    return np.minimum(tokens, UNREACHABLE).astype(np.int32)


def _bounds(
    before: np.ndarray, after: np.ndarray, interval: int, last_mcus: int
) -> tuple[np.ndarray, np.ndarray]:
    """`lowest` and `highest` of a machine."""
    ended, restarts, first = before >> 14 & 31, before >> 19 & 15, before >> 23 & 15
    is_end, at_mcu_end = (before >> 27 & 1) == 1, (after >> 14 & 1) == 1
    ended_after = after >> 9 & 31
    marked = is_end | (restarts > 0)
    # Nothing but a marker follows the last MCU.
    needed = ended + ~at_mcu_end
    needed_after = ended_after + ~at_mcu_end
    in_last, in_others = (needed_after <= mcus for mcus in (last_mcus, interval))
    in_last, in_others = in_last | is_end, in_others & ~is_end
    possible = ((before & 127) <= (before >> 7 & 127)) & (~marked | in_last | in_others)
    numbered = first != _NO_RESTART
    fields = [
        (_K, np.where(possible, before & 127, 1), np.where(possible, before >> 7 & 127, 0)),
        (_MCUS, np.where(marked, ended, needed), np.where(marked, ended, _MCUS[1])),
        (
            _SEGMENTS,
            np.where(marked & ~in_last, restarts + 1, restarts),
            np.where(marked & ~in_others, restarts, _SEGMENTS[1]),
        ),
        (_NUMBER, np.where(numbered, first, 0), np.where(numbered, first, _NUMBER[1])),
    ]
    lowest = np.zeros(before.shape, np.int64)
    highest = np.where((after >> 8 & 1) == 1, _FILLS, 0) + _GUARDS
    for (shift, _), low, high in fields:
        lowest += low.astype(np.int64) << shift
        highest += high.astype(np.int64) << shift
    return lowest.astype(np.int32), highest.astype(np.int32)


def _added(
    before: np.ndarray,
    after: np.ndarray,
    class_tokens: np.ndarray,
    interval: int,
    last_mcus: int,
) -> np.ndarray:
    """`added` of a machine: `min_tokens_to_end` after a token, less `_tokens_after_mcu` before it.

    A token that may fill its block does not here; then `full_tokens` is added.
    """
    mcu = int(class_tokens[0])
    ended, restarts, is_end = before >> 14 & 31, before >> 19 & 15, (before >> 27 & 1) == 1
    here = class_tokens[after >> 15]
    # Where a marker follows in the token, its segment had this left, less the MCU it is in.
    segment = np.maximum(ended - 1, 0) * mcu + 1
    between = (restarts - 1) * (interval * mcu + 1)
    restarted = here - ((after >> 9 & 31) + 1) * mcu - between - segment
    at_end = -segment - np.where(restarts > 0, between + last_mcus * mcu + 1, 0)
    added = np.where(restarts > 0, restarted, here - ended * mcu)
    return np.where(is_end, at_end, added).astype(np.int32)
