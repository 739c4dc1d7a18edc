"""Constrained decoding by a state machine over tokens, the general form: see `TokenMachine`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.representations.base import UNREACHABLE, TokenMachine

Array = Any  # numpy.ndarray or jax.Array


class TokenConstraint(NamedTuple):
    """A `Constraint` whose state is the machine's, int32 arrays [B].

    Attributes:
      machine: the state machine over tokens.
      vocab_size: number of token ids.
      eos: the end token.
    """

    machine: TokenMachine
    vocab_size: int
    eos: int

    def start(self, prompts: Sequence[np.ndarray]) -> Any:
        """See `Constraint.start`."""
        prefixes = [np.asarray(prompt, int)[1:] for prompt in prompts]
        lengths = np.array([len(tokens) for tokens in prefixes], int)
        state = _map(lambda value: np.full(len(prefixes), value, np.int32), self.machine.start())
        columns = np.zeros((max(lengths, default=0), len(prefixes)), int)
        for row, tokens in enumerate(prefixes):
            columns[: len(tokens), row] = tokens
        for position, tokens in enumerate(columns):
            inside = position < lengths
            known = (tokens >= 0) & (tokens < self.vocab_size)
            after = self.machine.step(state, np.where(known, tokens, 0).astype(np.int32))
            right = known & (self.machine.min_tokens_to_end(after) < UNREACHABLE)
            for number in np.flatnonzero(inside & ~right)[:1].tolist():
                raise ValueError(
                    f"prompt {number}: no valid document has token {int(tokens[number])} at "
                    f"position {position}; give a prefix of one of this representation and size"
                )
            pairs = zip(after, state, strict=True)
            state = type(state)(*(np.where(inside, new, old) for new, old in pairs))
        return _map(lambda leaf: leaf.astype(np.int32), state)

    def min_tokens_to_end(self, state: Any) -> Array:
        """See `Constraint.min_tokens_to_end`."""
        return self.machine.min_tokens_to_end(state) + 1

    def allowed(self, state: Any, remaining_B: jax.Array) -> jax.Array:
        """See `Constraint.allowed`."""
        rows = _map(lambda leaf: jnp.asarray(leaf)[:, None], state)
        min_after_BxV = self.machine.min_tokens_after(rows)
        at_end_Bx1 = self.machine.min_tokens_to_end(rows) == 0
        is_eos_V = jnp.arange(min_after_BxV.shape[1]) == self.eos
        # One position for the token, one for the end.
        return (min_after_BxV + 2 <= remaining_B[:, None]) | (at_end_Bx1 & is_eos_V)

    def advance(self, state: Any, tokens_B: jax.Array) -> Any:
        """See `Constraint.advance`."""
        return self.machine.step(state, tokens_B)


def _map(function: Any, state: Any) -> Any:
    """The NamedTuple with the function applied to each field."""
    return type(state)(*map(function, state))
