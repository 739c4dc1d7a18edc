"""The machine of documents with a fixed number of tokens allows exactly those."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.representations.base import UNREACHABLE
from data_pipelines.representations.fixed_length import FixedLengthState, make_machine

LENGTH, CODES, VOCAB = 3, 2, 5


@pytest.mark.parametrize("xp", [np, jnp])
def test_exactly_the_valid_documents_are_accepted(xp):
    machine = make_machine(LENGTH, CODES, VOCAB)
    for length in range(LENGTH + 2):
        documents = np.array([*itertools.product(range(VOCAB), repeat=length)], np.int32)
        state = FixedLengthState(xp.full(len(documents), machine.start().left))
        for tokens in documents.T:
            after = machine.min_tokens_after(FixedLengthState(state.left[:, None]))
            state = machine.step(state, xp.asarray(tokens))
            np.testing.assert_array_equal(after[xp.arange(len(tokens)), tokens], state.left)
        left = np.asarray(machine.min_tokens_to_end(state))
        content = (documents < CODES).all(1)
        np.testing.assert_array_equal(left == 0, content & (length == LENGTH))
        np.testing.assert_array_equal(left < UNREACHABLE, content & (length <= LENGTH))
        np.testing.assert_array_equal(left[left < UNREACHABLE], LENGTH - length)
