"""Prepared digits are the same everywhere."""

from tests.jpeglm_jax.conftest import digit_shards  # noqa: F401  a fixture
