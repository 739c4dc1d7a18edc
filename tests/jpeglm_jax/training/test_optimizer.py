"""Spikes are skipped, counted, and not waited out for ever."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import jpeg
from jpeglm_jax.train import train
from jpeglm_jax.training import optimizer
from tests.jpeglm_jax.conftest import tiny
from tests.jpeglm_jax.runs import lines


def steps(transformation, norms):
    """The weight after each step, for gradients of these norms, and the last state."""
    params = jnp.zeros(4)
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    weights = []
    for norm in norms:
        updates, state = update(jnp.full(4, norm / 2), state, params)
        params = optax.apply_updates(params, updates)
        weights.append(params)
    return np.array(weights), state


def test_a_spike_changes_neither_weights_nor_moments():
    usual = [1.0] * 150
    inner = optax.adam(1e-2)
    _, before = steps(optimizer.skip_spikes(inner, 10.0), usual)
    weights, state = steps(optimizer.skip_spikes(inner, 10.0), [*usual, 1000.0, 1.0])
    np.testing.assert_array_equal(weights[150], weights[149])
    assert np.abs(weights[151] - weights[150]).max() > 0
    assert int(state.skipped) == 1 and int(state.skipped) == 1
    spiked = steps(optimizer.skip_spikes(inner, 10.0), [*usual, 1000.0])[1]
    jax.tree.map(np.testing.assert_array_equal, spiked.inner, before.inner)


def test_without_spikes_nothing_is_changed():
    norms = np.random.RandomState(0).uniform(0.5, 2.0, 200)
    inner = optax.adam(1e-2)
    ours, state = steps(optimizer.skip_spikes(inner, 10.0), norms)
    np.testing.assert_array_equal(ours, steps(inner, norms)[0])
    assert int(state.skipped) == 0


def test_gradients_that_stay_large_are_followed_again():
    _, state = steps(optimizer.skip_spikes(optax.sgd(1e-3), 5.0), [1.0] * 150 + [20.0] * 200)
    assert 0 < int(state.skipped) < 60


def test_the_first_steps_are_never_skipped():
    _, state = steps(optimizer.skip_spikes(optax.sgd(1e-3), 5.0, warmup=100), [1.0, 1000.0] * 20)
    assert int(state.skipped) == 0


def test_it_is_off_unless_asked_for_and_then_counted_in_the_log(digit_shards, tmp_path):
    assert jpeg.get_config("7b").optimizer.skip_spikes == 0
    train(tiny(4, **{"data.shards": digit_shards, "optimizer.skip_spikes": 10.0}), tmp_path)
    assert [line["train/skipped_steps"] for line in lines(tmp_path) if "train/loss" in line] == [
        0.0
    ] * 4


def test_a_factor_that_would_skip_usual_steps_is_refused(digit_shards, tmp_path):
    config = tiny(4, **{"data.shards": digit_shards, "optimizer.skip_spikes": 0.5})
    with pytest.raises(ValueError, match="skip_spikes is 0.5; expected 0"):
        train(config, tmp_path)
