"""A finite automaton over the bits of baseline JPEG MCUs.

It accepts exactly the entropy-coded bits that an encoder with these tables writes (ITU-T T.81,
F.1.2 and F.2.2): only defined codes, coefficients with indices 1-63, no ZRL directly before EOB.
Padding, byte stuffing and markers are not part of it. `segments` (for validation) and
`byte_machine` (for constrained sampling) use the same automaton.

A state is a position inside a block of the MCU:

    DC code          a node of the DC code's tree
    DC bits          number of bits of the difference that are left
    AC code          index k of the next coefficient, and a node of the AC code's tree
    AC code          the same after ZRL, on the path of EOB's code, because EOB after ZRL would make
    after ZRL        the ZRL superfluous; off that path the states are those of the line above
    AC bits          index k of the next coefficient, and bits of the present one that are left

Grey images have 11,115 states, 4:2:0 has 66,418. Absolute DC values are not part of the state: the
format bounds only their differences (F.1.2.1), and decoders clamp the sums.
"""

from __future__ import annotations

import dataclasses
import enum
import functools

import numpy as np

from data_pipelines.representations.jpeg.format import JpegFormat
from data_pipelines.representations.jpeg.huffman import EOB, ZRL, HuffmanTable, block_tables


class Reject(enum.IntEnum):
    """States that no valid bits leave, by reason. `DEAD` is free for users of the automaton."""

    UNDEFINED_CODE = 0
    PAST_END = 1
    ZEROS_BEFORE_EOB = 2
    DEAD = 3


START = len(Reject)  # first state of an MCU

# Inside one block, before blocks are joined, states count from 0 and these codes mean leaving it.
_END = -1
_REJECTS = {-2 - reject: reject for reject in Reject}
_UNDEFINED, _PAST, _ZEROS = (-2 - reject for reject in list(Reject)[:3])


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """Transition tables. States below `START` are `Reject`s and lead only to themselves.

    Attributes:
      bits: next state by (state, bit), int32 [states, 2].
      ends: whether that bit is the last of its MCU (the next state is then `START`), bool
        [states, 2].
    """

    bits: np.ndarray
    ends: np.ndarray

    @property
    def states(self) -> int:
        return len(self.bits)

    @functools.cached_property
    def nibbles(self) -> np.ndarray:
        """Transitions by four bits, flat int32 [states * 16]: 32 * next state + MCUs ended (0, 1).

        The index of (state, nibble) is 16 * state + nibble. No MCU is shorter than four bits.
        """
        states = np.repeat(np.arange(self.states, dtype=np.int32), 16)
        nibble = np.tile(np.arange(16), self.states)
        ended = np.zeros(len(states), np.int32)
        for shift in (3, 2, 1, 0):
            bit = nibble >> shift & 1
            ended += self.ends[states, bit]
            states = self.bits[states, bit]
        return 32 * states + ended


@functools.lru_cache(maxsize=8)
def automaton(settings: JpegFormat) -> Automaton:
    """The automaton of a sequence of MCUs of these settings."""
    return _join(block_tables(settings))


@functools.lru_cache(maxsize=8)
def _join(blocks: tuple[tuple[HuffmanTable, HuffmanTable], ...]) -> Automaton:
    """Concatenates the blocks of an MCU; the last block leads back to the first."""
    parts = [_block(dc, ac) for dc, ac in blocks]
    first = START + np.cumsum([0] + [len(part) for part in parts])
    bits = [np.repeat(np.arange(START, dtype=np.int32)[:, None], 2, axis=1)]
    ends = [np.zeros((START, 2), bool)]
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        joined = np.where(part >= 0, part + first[index], part)
        joined[part == _END] = START if last else first[index + 1]
        for code, reject in _REJECTS.items():
            joined[part == code] = reject
        bits.append(joined.astype(np.int32))
        ends.append((part == _END) & last)
    return Automaton(np.concatenate(bits), np.concatenate(ends))


@functools.lru_cache(maxsize=8)
def _block(dc: HuffmanTable, ac: HuffmanTable) -> np.ndarray:
    """Transitions inside one block, int32 [states, 2], as described at the top of this file."""
    dc_tree, ac_tree = _tree(dc), _tree(ac)
    eob_code, eob_bits = ac.codes[EOB]
    eob_path = _path(ac_tree, eob_code, eob_bits)
    dc_sizes, ac_sizes = max(dc.symbols), max(symbol & 15 for symbol in ac.symbols)

    ks = np.arange(1, 64)
    dc_bits_at = len(dc_tree)
    ac_at = dc_bits_at + dc_sizes
    run_at = ac_at + 63 * len(ac_tree)
    ac_bits_at = run_at + 63 * eob_bits
    table = np.full((ac_bits_at + 63 * ac_sizes, 2), _UNDEFINED, np.int32)

    def dc_bits(left):  # 1 <= left <= dc_sizes
        return dc_bits_at + left - 1

    def ac_code(k, node=0):
        return ac_at + (k - 1) * len(ac_tree) + node

    def after_run(k, step=0):  # after ZRL and `step` bits of EOB's code
        return run_at + (k - 1) * eob_bits + step

    def ac_bits(k, left):  # 2 <= k <= 64, the coefficient after this one
        return ac_bits_at + (k - 2) * ac_sizes + left - 1

    def after_symbol(k, symbol):
        """The state after an AC symbol, for each k."""
        if symbol == EOB:
            return np.full_like(k, _END)
        run, size = symbol >> 4, symbol & 15
        if symbol == ZRL:
            return np.where(k + 16 <= 63, after_run(k + 16), _PAST)
        return np.where(k + run <= 63, ac_bits(k + run + 1, size), _PAST)

    for node, children in enumerate(dc_tree):
        for bit, child in enumerate(children):
            category = _symbol(child)
            if child >= 0:
                table[node, bit] = child
            elif category is not None:
                table[node, bit] = dc_bits(category) if category else ac_code(1)
    for left in range(1, dc_sizes + 1):
        table[dc_bits(left)] = dc_bits(left - 1) if left > 1 else ac_code(1)

    for node, children in enumerate(ac_tree):
        for bit, child in enumerate(children):
            symbol = _symbol(child)
            if child >= 0:
                table[ac_code(ks, node), bit] = ac_code(ks, child)
            elif symbol is not None:
                table[ac_code(ks, node), bit] = after_symbol(ks, symbol)
    for step, (node, bit) in enumerate(eob_path):
        table[after_run(ks, step)] = table[ac_code(ks, node)]
        final = step == eob_bits - 1
        table[after_run(ks, step), bit] = _ZEROS if final else after_run(ks, step + 1)
    for left in range(1, ac_sizes + 1):
        done = np.where(ks + 1 <= 63, ac_code(ks + 1), _END)
        table[ac_bits(ks + 1, left)] = (ac_bits(ks + 1, left - 1) if left > 1 else done)[:, None]
    return table


_NO_CODE = -1  # in a tree: no code begins with these bits


def _tree(table: HuffmanTable) -> list[list[int]]:
    """The code as a binary tree: by inner node and bit, an inner node or a leaf (see `_symbol`)."""
    nodes = [[_NO_CODE, _NO_CODE]]
    for symbol, (code, bits) in table.codes.items():
        node = 0
        for shift in range(bits - 1, 0, -1):
            bit = code >> shift & 1
            if nodes[node][bit] == _NO_CODE:
                nodes.append([_NO_CODE, _NO_CODE])
                nodes[node][bit] = len(nodes) - 1
            node = nodes[node][bit]
        nodes[node][code & 1] = -2 - symbol
    return nodes


def _symbol(child: int) -> int | None:
    """The symbol of a leaf; None for an inner node or no code."""
    return -2 - child if child < _NO_CODE else None


def _path(tree: list[list[int]], code: int, bits: int) -> list[tuple[int, int]]:
    """The (node, bit) pairs that a code passes through."""
    path, node = [], 0
    for shift in range(bits - 1, -1, -1):
        bit = code >> shift & 1
        path.append((node, bit))
        node = tree[node][bit]
    return path
