"""The constraint of representations whose tokens are not whole bytes: see `TokenMachine`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.representations.base import UNREACHABLE, TokenMachine

Array = Any  # numpy.ndarray or jax.Array


class TokenConstraint(NamedTuple):
    """See `Constraint`. Its state is the machine's, of int32 arrays [B].

    Attributes:
      machine: of the tokens.
      vocab_size: number of token ids.
      eos: the end token.
    """

    machine: TokenMachine
    vocab_size: int
    eos: int

    def start(self, prompts: Sequence[np.ndarray]) -> Any:
        """See `Constraint.start`."""
        given = [np.asarray(prompt, int)[1:] for prompt in prompts]
        lengths = np.array([len(tokens) for tokens in given], int)
        begin = self.machine.start()
        state = type(begin)(*(np.full(len(given), value, np.int32) for value in begin))
        for position in range(max(lengths, default=0)):
            there = position < lengths
            token = np.array([each[position] if position < len(each) else 0 for each in given])
            known = (token >= 0) & (token < self.vocab_size)
            after = self.machine.step(state, np.where(known, token, 0).astype(np.int32))
            right = known & (self.machine.min_tokens_to_end(after) < UNREACHABLE)
            for number in np.flatnonzero(there & ~right)[:1].tolist():
                raise ValueError(
                    f"prompt {number}: no valid document has token {int(token[number])} at "
                    f"position {position}; give the beginning of one of this representation and size"
                )
            state = type(state)(
                *(np.where(there, new, old).astype(np.int32) for new, old in zip(after, state, strict=True))
            )
        return state

    def needed(self, state: Any) -> Array:
        """See `Constraint.needed`."""
        return self.machine.min_tokens_to_end(state) + 1

    def allowed(self, state: Any, remaining_B: jax.Array) -> jax.Array:
        """See `Constraint.allowed`."""
        rows = type(state)(*(jnp.asarray(leaf)[:, None] for leaf in state))
        shortest_BxV = self.machine.min_tokens_after(rows)
        at_end_Bx1 = self.machine.min_tokens_to_end(rows) == 0
        is_eos_V = jnp.arange(shortest_BxV.shape[1]) == self.eos
        # One position for the token, one for the end.
        return (shortest_BxV + 2 <= remaining_B[:, None]) | (at_end_Bx1 & is_eos_V)

    def advance(self, state: Any, tokens_B: jax.Array) -> Any:
        """See `Constraint.advance`."""
        return self.machine.step(state, tokens_B)
