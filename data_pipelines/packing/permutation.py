"""Stateless random numbers: a keyed hash, and keyed permutations with random access.

The value at an index is computed from the key and the index alone, in integer arithmetic modulo
2**64. It is the same on every platform and for every version of numpy, whose own generators do not
guarantee that (NEP 19).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
# Six rounds are enough for large permutations. With twelve, all permutations of three to five
# elements are equally likely within the error of 24,000 samples.
_ROUNDS = 12


def hash64(*parts: ArrayLike) -> np.ndarray:
    """Hashes tuples of integers, broadcast together, to uint64 of at least one dimension.

    Each part goes through the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
    pseudorandom number generators", 2014). Parts are non-negative integers below 2**64.
    """
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _mix(state + (np.asarray(part).astype(np.uint64) + _GOLDEN))
    return state


def uniform(*parts: ArrayLike) -> np.ndarray:
    """Hashes tuples of integers to float64 in [0, 1), uniform; the arguments of `hash64`."""
    return (hash64(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index: ArrayLike, size: ArrayLike, key: ArrayLike) -> np.ndarray:
    """Applies the permutation of `range(size)` that is selected by `key` to `index`.

    A Feistel network over a grid of about sqrt(size) x sqrt(size) cells, repeated until the result
    is in the range (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains",
    2002). The grid has at most sqrt(size) extra cells, so a second round is rare.

    Args:
      index: integers, 0 <= index < size.
      size: number of permuted elements, at most 2**62; a scalar or one per index.
      key: uint64 keys from `hash64`; a scalar or one per index.

    Returns:
      int64, the shape of the arguments broadcast together, at least one dimension.
    """
    arguments = (np.atleast_1d(np.asarray(part).astype(np.uint64)) for part in (index, size, key))
    value, size, key = np.broadcast_arrays(*arguments)
    shape = value.shape
    value, size, key = (part.reshape(-1) for part in (value, size, key))
    height = np.sqrt(size.astype(np.float64)).astype(np.uint64)
    height = height + (height * height < size)
    width = (size + height - np.uint64(1)) // height

    result = _feistel(value, height, width, key)
    outside = np.flatnonzero(result >= size)
    while outside.size:
        again = _feistel(result[outside], height[outside], width[outside], key[outside])
        result[outside] = again
        outside = outside[again >= size[outside]]
    return result.reshape(shape).astype(np.int64)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _MULTIPLIER_1
    state = (state ^ (state >> np.uint64(27))) * _MULTIPLIER_2
    return state ^ (state >> np.uint64(31))


def _feistel(
    value: np.ndarray, height: np.ndarray, width: np.ndarray, key: np.ndarray
) -> np.ndarray:
    """A bijection of range(height * width) that shifts rows and columns in turn."""
    row = value // width
    column = value - row * width
    for turn in range(_ROUNDS):
        if turn % 2:
            row = (row + _shift(column, key, turn)) % height
        else:
            column = (column + _shift(row, key, turn)) % width
    return row * width + column


def _shift(value: np.ndarray, key: np.ndarray, turn: int) -> np.ndarray:
    """31 bits of the SplitMix64 sequence seeded with `key`, at an index for each (value, turn).

    With 31 bits, adding them to a row or column never overflows, which would break the bijection.
    """
    counter = value * np.uint64(_ROUNDS) + np.uint64(turn + 1)
    return _mix(key + counter * _GOLDEN) >> np.uint64(33)
