"""The state machine of documents with a fixed number of tokens, for constrained sampling.

It is the whole grammar of representations without a codec, such as pixels in raster order: so many
tokens, each of which stands for content.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.base import UNREACHABLE

Array = Any  # numpy.ndarray or jax.Array


class FixedLengthState(NamedTuple):
    """The state of a document.

    Attributes:
      left: tokens that are missing, int32; `UNREACHABLE` after a wrong token.
    """

    left: Array


class FixedLengthMachine(NamedTuple):
    """A `TokenMachine` that accepts documents of exactly `length` tokens of content.

    Attributes:
      length: tokens of a document.
      num_codes: token ids of content: 0 to num_codes - 1.
      ids: all token ids, int32 [V].
    """

    length: int
    num_codes: int
    ids: Array

    def start(self) -> FixedLengthState:
        """See `TokenMachine.start`."""
        return FixedLengthState(np.int32(self.length))

    def step(self, state: FixedLengthState, token: Array) -> FixedLengthState:
        """See `TokenMachine.step`."""
        xp = token.__array_namespace__()
        valid = (token >= 0) & (token < self.num_codes)
        valid = valid & (state.left > 0) & (state.left < UNREACHABLE)
        return FixedLengthState(xp.where(valid, state.left - 1, UNREACHABLE))

    def min_tokens_to_end(self, state: FixedLengthState) -> Array:
        """See `TokenMachine.min_tokens_to_end`; exact."""
        return state.left

    def min_tokens_after(self, state_Bx1: FixedLengthState) -> Array:
        """See `TokenMachine.min_tokens_after`."""
        xp = state_Bx1.left.__array_namespace__()
        return self.step(state_Bx1, xp.asarray(self.ids)[None]).left


def make_machine(length: int, num_codes: int, vocab_size: int) -> FixedLengthMachine:
    """The machine of documents of `length` tokens.

    Args:
      length: tokens of every document.
      num_codes: token ids that stand for content.
      vocab_size: all token ids.
    """
    return FixedLengthMachine(length, num_codes, np.arange(vocab_size, dtype=np.int32))
