"""Documents with a fixed number of tokens in raster order: representations without a codec.

Their whole grammar is a length: so many tokens, each of which stands for content. `pixel` and `vq`
are such representations.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import numpy as np

from data_pipelines.representations.base import UNREACHABLE, Representation, Validity

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


class FixedLengthRepresentation(Representation):
    """Images as `length` tokens of content, row by row.

    Attributes:
      content: what a token stands for, in messages: "colour".
    """

    content: ClassVar[str]

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Tokens of every document."""

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """Rows of an image, of equally many tokens."""

    @property
    def tokens_per_unit(self) -> int:
        """Tokens of a unit of `Validity`."""
        return 1

    def content_of(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens before the first that stands for no content, integer, at most `length`."""
        tokens = np.asarray(tokens)
        if not _is_document(tokens):
            return np.zeros(0, np.int64)
        tokens = tokens[: self.length]
        wrong = (tokens < 0) | (tokens >= self.num_codes)
        return tokens[: wrong.argmax()] if wrong.any() else tokens

    def prompt(self, tokens: np.ndarray, ratio: float) -> np.ndarray:
        """The leading tokens that hold int(ratio * rows) whole rows.

        Raises ValueError for a ratio outside 0-1, and for a document that is damaged before the
        cut.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"found a prefix ratio of {ratio}, expected a number from 0 to 1")
        cut = int(ratio * self.rows) * (self.length // self.rows)
        if len(self.content_of(tokens)) < cut:
            raise ValueError(self.validate(tokens).error)
        return tokens[:cut]

    def validate(self, tokens: np.ndarray) -> Validity:
        """Strict validation: exactly `length` tokens that stand for content."""
        tokens = np.asarray(tokens)
        good = len(self.content_of(tokens))
        error = ""
        if not _is_document(tokens):
            error = f"found {tokens.dtype} {list(tokens.shape)}, expected tokens, integer [n]"
        elif good < min(len(tokens), self.length):
            error = (
                f"token {int(tokens[good])} at position {good} stands for no {self.content}; "
                f"expected 0 to {self.num_codes - 1}"
            )
        elif len(tokens) != self.length:
            error = f"found {len(tokens):,} tokens, expected {self.length:,}"
        per_unit = self.tokens_per_unit
        return Validity(not error, good // per_unit, self.length // per_unit, error)

    def token_machine(self, size: tuple[int, int] | None = None) -> FixedLengthMachine:
        """The machine of documents of exactly `length` tokens of content.

        Raises ValueError for another size than the representation's.
        """
        if size is not None and tuple(size) != self.fixed_size:
            raise ValueError(
                f"found size {size}, expected {self.fixed_size}, the only one of this "
                "representation"
            )
        return make_machine(self.length, self.num_codes, self.vocab_size)


def _is_document(tokens: np.ndarray) -> bool:
    return tokens.ndim == 1 and np.issubdtype(tokens.dtype, np.integer)
