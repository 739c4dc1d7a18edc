"""Which tokens the sampling parameters keep, and how often each is sampled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeglm_jax.generation.sampling import SamplingParams, sample_token

LOGITS = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]]))


@pytest.mark.parametrize(
    ("sampling_params", "kept"),
    [
        (SamplingParams(), [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (SamplingParams(top_k=2), [[1, 0, 1, 0], [0, 0, 1, 1]]),
        (SamplingParams(top_k=9), [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (SamplingParams(top_p=0.6), [[1, 0, 1, 0], [0, 0, 1, 1]]),
        (SamplingParams(top_p=0.45), [[1, 0, 0, 0], [0, 0, 1, 1]]),
        (SamplingParams(top_p=1e-6), [[1, 0, 0, 0], [0, 0, 0, 1]]),
        (SamplingParams(top_k=3, top_p=0.8), [[1, 0, 1, 0], [0, 1, 1, 1]]),
        (SamplingParams(min_p=0.55), [[1, 0, 1, 0], [0, 0, 1, 1]]),
        (SamplingParams(min_p=0.05), [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (SamplingParams(temperature=0.0), [[1, 0, 0, 0], [0, 0, 0, 1]]),
    ],
)
def test_sampling_params_keep_the_expected_tokens(sampling_params, kept):
    np.testing.assert_array_equal(np.isfinite(sampling_params(LOGITS)), np.array(kept, bool))


def test_filtered_logits_keep_their_proportions():
    probs = jax.nn.softmax(SamplingParams(temperature=2.0, top_k=2)(LOGITS))
    np.testing.assert_allclose(probs[0, 0] / probs[0, 2], (0.5 / 0.3) ** 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 1}, "min_p"),
        ({"guidance": -1}, "guidance"),
    ],
)
def test_impossible_sampling_params_are_refused(change, name):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(SamplingParams(), **change)


def test_tokens_are_sampled_by_their_probability_and_never_if_filtered_out():
    rows = 20_000
    keys = jax.vmap(jax.random.key)(jnp.arange(rows))
    logits = jnp.log(jnp.array([0.5, 0.0, 0.3, 0.2, 0.0]))
    sampled = np.asarray(sample_token(keys, jnp.tile(logits, (rows, 1))))
    shares = np.bincount(sampled, minlength=5) / rows
    np.testing.assert_allclose(shares, [0.5, 0, 0.3, 0.2, 0], atol=0.015)
    assert shares[1] == shares[4] == 0
