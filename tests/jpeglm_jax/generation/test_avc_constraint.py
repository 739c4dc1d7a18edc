"""Constrained clips are valid to the last bit and end in time, whatever a model prefers."""

import jax
import numpy as np
import pytest

from data_pipelines.representations import make
from jpeglm_jax.generation.constraint import make_constraint
from tests.data_pipelines.representations.avc.clips import moving
from tests.data_pipelines.representations.avc.mutations import complaints
from tests.jpeglm_jax.generation.test_constraint import random_documents

ROWS = 8


def logit_biases(representation):
    """Preferences of a model, by name, float32 [V]."""
    tokens = np.arange(representation.vocab_size)
    return {
        "none": 0.0 * tokens,
        "no end": np.where(tokens == representation.eos, -60.0, 0.0),
        "the end at once": np.where(tokens == representation.eos, 60.0, 0.0),
        "zeros": np.where(tokens < 4, 8.0, 0.0),
    }


@pytest.mark.parametrize("slice_mbs", [0, 1])
def test_clips_of_any_bias_are_valid_within_every_limit(slice_mbs):
    representation = make(
        "avc", size=(32, 32), fps=4, frames=3, slice_mbs=slice_mbs, strip="headers"
    )
    rules = make_constraint(representation)
    whole = representation.encode(moving(3, 32, 32))
    prompts = [np.array([representation.bos])] * (ROWS - 1)
    prompts.append(np.concatenate([[representation.bos], representation.prompt(whole, 2 / 3)]))
    start = jax.tree.map(np.asarray, rules.start(prompts))
    needed = int(np.max(rules.min_tokens_to_end(start)))
    for seed, (name, bias) in enumerate(logit_biases(representation).items()):
        for length in (needed, 200):
            tokens, stuck = random_documents(rules, start, bias, seed, length, 200)
            assert not stuck, (name, length)
            for prompt, row in zip(prompts, np.asarray(tokens), strict=True):
                assert representation.eos in row, (name, length)
                sampled = row[(row >= 0) & (row != representation.eos)]
                document = np.concatenate([prompt[1:], sampled]).astype(np.uint16)
                validity = representation.validate(document)
                assert validity.valid, (name, length, validity.error)
                assert not complaints(representation, representation.tokenizer.decode(document))
