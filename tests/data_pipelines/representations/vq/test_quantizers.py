"""Quantisers by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.representations.vq import quantizers
from data_pipelines.representations.vq.quantizers import Codebook, unit


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_the_code_of_a_latent_is_the_nearest_one():
    codes, latents = unit(random(0, 32, 4)), unit(random(1, 50, 4))
    distances = jnp.sum(jnp.square(latents[:, None] - codes), axis=-1)
    np.testing.assert_array_equal(quantizers.nearest(codes, latents), distances.argmin(-1))


def test_straight_through_copies_the_gradient():
    latents, quantized, direction = random(0, 5, 4), random(1, 5, 4), random(2, 5, 4)
    value, pull = jax.vjp(lambda x: quantizers.straight_through(x, quantized), latents)
    np.testing.assert_allclose(value, quantized, atol=1e-6)
    np.testing.assert_allclose(pull(direction)[0], direction)


def test_rotation_keeps_the_angle_between_gradient_and_vector():
    latents, quantized, direction = random(0, 5, 4), random(1, 5, 4), random(2, 5, 4)
    value, pull = jax.vjp(lambda x: quantizers.rotation(x, quantized), latents)
    np.testing.assert_allclose(value, quantized, atol=1e-4)
    passed = pull(direction)[0]
    scale = jnp.linalg.norm(quantized, axis=-1) / jnp.linalg.norm(latents, axis=-1)

    def norm(x):
        return jnp.linalg.norm(x, axis=-1)

    # The transpose of a rotation times the scale: lengths scale, angles stay.
    np.testing.assert_allclose(norm(passed), scale * norm(direction), rtol=1e-4)
    before = jnp.sum(direction * quantized, -1) / norm(direction) / norm(quantized)
    after = jnp.sum(passed * latents, -1) / norm(passed) / norm(latents)
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_rotation_by_its_matrix():
    """R of section 4.2 of the paper, built as a matrix."""
    e, q, direction = (np.asarray(unit(random(seed, 4)), np.float64) for seed in range(3))
    r = (e + q) / np.linalg.norm(e + q)
    matrix = np.eye(4) - 2 * np.outer(r, r) + 2 * np.outer(q, e)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-6)
    _, pull = jax.vjp(lambda x: quantizers.rotation(x, jnp.float32(q)), jnp.float32(e))
    np.testing.assert_allclose(pull(jnp.float32(direction))[0], matrix.T @ direction, atol=1e-4)


def update(codebook, latents, codes, weights=None, decay=0.9, restart_below=0.0):
    weights = jnp.ones(len(codes)) if weights is None else jnp.asarray(weights, jnp.float32)
    return quantizers.update_codebook(
        codebook,
        jnp.asarray(latents),
        jnp.asarray(codes),
        weights,
        jax.random.key(9),
        decay=decay,
        restart_below=restart_below,
    )


def test_counts_begin_at_one_and_are_averages_in_units_of_even_use():
    codebook = quantizers.new_codebook(jax.random.key(0), 4, 3)
    np.testing.assert_array_equal(codebook.counts, 1)
    latents = unit(random(1, 8, 3))
    codes = jnp.array([0, 0, 0, 0, 0, 1, 1, 2])
    after, restarts = update(codebook, latents, codes, weights=[1, 1, 1, 1, 1, 1, 0, 1])
    np.testing.assert_allclose(after.counts, 0.9 + 0.1 * np.array([5, 1, 1, 0]) * 4 / 7, rtol=1e-5)
    expected = 0.9 * codebook.sums[1] + 0.1 * latents[5] * 4 / 7
    np.testing.assert_allclose(after.sums[1], expected, rtol=1e-5)
    assert restarts == 0


def test_an_unused_code_splits_the_most_used_one():
    counts = jnp.array([0.01, 3.0, 1.0, 0.9])
    codebook = Codebook(counts, counts[:, None] * unit(random(0, 4, 3)))
    after, restarts = update(codebook, unit(random(1, 4, 3)), [0, 0, 0, 0], [0] * 4, 1.0, 0.1)
    assert restarts == 1
    np.testing.assert_allclose(after.counts, [1.5, 1.5, 1.0, 0.9])
    old, new = unit(codebook.sums), unit(after.sums)
    np.testing.assert_allclose(new[1:], old[1:], atol=1e-6)
    assert 0.99 < float(new[0] @ old[1]) < 1, "next to it, and not the same"


def test_no_code_is_split_below_the_threshold():
    counts = jnp.array([0.01, 0.02, 0.15, 0.12])
    codebook = Codebook(counts, counts[:, None] * unit(random(0, 4, 3)))
    after, restarts = update(codebook, unit(random(1, 4, 3)), [0] * 4, [0] * 4, 1.0, 0.1)
    assert restarts == 0
    np.testing.assert_array_equal(after.counts, counts)


LEVELS = [(3,), (2, 3), (8, 5, 5, 5), (4, 4)]


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_has_its_levels_and_no_others(levels):
    latents = jnp.linspace(-20, 20, 2001)[:, None] * jnp.ones(len(levels))
    rounded = np.round(quantizers.fsq_bound(latents, levels))
    for size, column in zip(levels, rounded.T, strict=True):
        lowest = -(size // 2)
        np.testing.assert_array_equal(np.unique(column), np.arange(lowest, lowest + size))
    zero = quantizers.fsq_bound(jnp.zeros(len(levels)), levels)
    np.testing.assert_allclose(zero, 0, atol=1e-5)


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_codes_count_all_combinations(levels):
    codes = jnp.arange(np.prod(levels))
    values = quantizers.fsq_values(codes, levels)
    assert len(np.unique(np.asarray(values), axis=0)) == len(codes)
    assert np.abs(values).max() <= 1
    np.testing.assert_array_equal(quantizers.fsq_codes(values, levels), codes)


def test_fsq_passes_the_gradient_of_its_bound():
    latents, direction = random(0, 6, 2), random(1, 6, 2)
    value, pull = jax.vjp(lambda x: quantizers.fsq_round(x, (5, 4)), latents)
    _, bound = jax.vjp(lambda x: quantizers.fsq_bound(x, (5, 4)) / jnp.array([2, 2]), latents)
    np.testing.assert_allclose(pull(direction)[0], bound(direction)[0], rtol=1e-5)
    assert set(np.unique(np.asarray(value) * 2)) <= {-2, -1, 0, 1, 2}
