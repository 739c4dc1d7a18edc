"""Which tokens the sampling parameters keep, and how often each is sampled."""

import dataclasses
import math

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
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": math.nan}, "min_p"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"guidance": math.nan}, "guidance is nan"),
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


def pick(sampling_params, logits, *more, keys=500):
    """The tokens sampled from one row of logits, with many keys."""
    rows = sampling_params(jnp.asarray(logits)[None], *more)
    keys = jax.vmap(jax.random.key)(jnp.arange(keys))
    return np.asarray(sample_token(keys, jnp.broadcast_to(rows, (len(keys), rows.shape[1]))))


@pytest.mark.parametrize("temperature", [1e-6, 1e-7, 1e-8, 1e-9, 1e-20, 1e-39, 1e-300, 5e-324])
@pytest.mark.parametrize("more", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_temperature_near_zero_is_greedy(temperature, more):
    logits = np.array([-90.0, 11.0, 12.5, 12.4, -3.0], np.float32)
    assert set(pick(SamplingParams(temperature=temperature, **more), logits)) == {2}


@pytest.mark.parametrize("temperature", [1e10, 1e38, 1e39, 1e300])
def test_a_huge_temperature_samples_all_allowed_tokens_alike(temperature):
    allowed = jnp.array([[True, False, True, True]])
    logits = np.array([-90.0, 200.0, 12.5, 0.0], np.float32)
    sampled = pick(SamplingParams(temperature=temperature), logits, None, allowed, keys=3000)
    shares = np.bincount(sampled, minlength=4) / 3000
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.04)


@pytest.mark.parametrize("guidance", [1e4, 1e30, 1e38, 1e39, 1e300])
@pytest.mark.parametrize("temperature", [1.0, 1e-8, 1e8])
def test_huge_guidance_takes_the_token_that_the_label_favours_most(guidance, temperature):
    if guidance / temperature < 100:
        return
    allowed = jnp.array([[True, True, True, False]])
    logits, unconditional = np.array([[1.0, 3.0, 2.0, 50.0], [1.0, 4.0, 1.0, 0.0]], np.float32)
    params = SamplingParams(guidance=guidance, temperature=temperature)
    assert set(pick(params, logits, unconditional[None], allowed)) == {2}


def test_guidance_moves_the_logits_away_from_those_without_a_label():
    logits, unconditional = LOGITS[:1], LOGITS[1:]
    found = jax.nn.softmax(SamplingParams(guidance=3.0, temperature=2.0)(logits, unconditional))
    expected = jax.nn.softmax((unconditional + 3 * (logits - unconditional)) / 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="guidance"):
        SamplingParams(guidance=3.0)(logits)


@pytest.mark.parametrize("top_p", [1e-30, 1e-46, 1e-300])
def test_the_smallest_top_p_keeps_the_most_likely_token(top_p):
    assert set(pick(SamplingParams(top_p=top_p), LOGITS[0])) == {0}


def test_masked_tokens_are_never_sampled_however_the_sum_is_rounded():
    """Long rows: a parallel sum of 32,000 entries is not monotone."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (16, 32_000)).astype(np.float32)
    logits[:, ::2] = -np.inf
    logits[:, -5000:] = -np.inf
    for step in range(20):
        keys = jax.vmap(jax.random.key)(jnp.arange(16) + 100 * step)
        sampled = np.asarray(sample_token(keys, jnp.asarray(logits)))
        assert np.isfinite(np.take_along_axis(logits, sampled[:, None], 1)).all()
