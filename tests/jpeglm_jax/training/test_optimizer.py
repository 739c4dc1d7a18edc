"""Learning rates by step, and steps with spikes, which are skipped and counted."""

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
    assert int(state.skipped) == 1
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


def rates(steps, **changes):
    config = jpeg.get_config("digits").optimizer
    config.update({"learning_rate": 1.0, "final_fraction": 0.1, **changes})
    return [float(optimizer.schedule(config, steps)(step)) for step in range(steps + 1)]


def test_a_cosine_rises_linearly_and_falls_to_its_end_with_the_run():
    found = rates(100, warmup_steps=10)
    np.testing.assert_allclose(found[:11], np.arange(11) / 10, rtol=1e-6)
    np.testing.assert_allclose(found[55], 0.55, rtol=1e-6)
    np.testing.assert_allclose(found[100], 0.1, rtol=1e-6)


def test_wsd_is_constant_between_warm_up_and_decay():
    found = rates(100, schedule="wsd", warmup_steps=10, decay_steps=20)
    assert found[5] == pytest.approx(0.5) and found[90] == pytest.approx(0.55)
    assert found[10:81] == [1.0] * 71 and found[100] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("steps", "changes", "expected"),
    [
        (50, dict(warmup_steps=2000), (5, 0, 45, True)),
        (2000, dict(warmup_steps=2000), (200, 0, 1800, True)),
        (2001, dict(warmup_steps=2000), (2000, 0, 1, False)),
        (1, dict(warmup_steps=100), (0, 0, 1, True)),
        (50, dict(schedule="wsd", warmup_steps=100, decay_steps=300), (12, 0, 38, True)),
        (400, dict(schedule="wsd", warmup_steps=100, decay_steps=300), (100, 0, 300, False)),
        (500, dict(schedule="wsd", warmup_steps=100, decay_steps=300), (100, 100, 300, False)),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_scaled(steps, changes, expected):
    config = jpeg.get_config("digits").optimizer
    config.update(changes)
    assert optimizer.lengths(config, steps) == expected
    assert all(np.isfinite(rates(steps, **changes)))


def test_skipped_steps_advance_the_schedule():
    """A skipped step takes its learning rate with it: the schedule ends with the run."""
    config = jpeg.get_config("digits").optimizer
    config.update(
        learning_rate=1.0, warmup_steps=0, final_fraction=0.0, skip_spikes=2.0, weight_decay=0.0
    )
    axes, params = {"w": ("embed",)}, {"w": jnp.zeros(4)}
    made = optimizer.make(config, 300, axes)
    state, update = made.init(params), jax.jit(made.update)
    for step in range(300):
        norm = 1000.0 if 200 <= step < 203 else 1.0
        updates, state = update({"w": jnp.full(4, norm / 2)}, state, params)
    assert int(optimizer.skipped(state)) == 3
    # Adam's direction is 1 for gradients that are all the same.
    applied = float(jnp.abs(updates["w"]).max())
    assert applied == pytest.approx(float(optimizer.schedule(config, 300)(299)), rel=1e-2)
