"""The digest of weights depends on every value and its place, not on the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jpeglm_jax.model.identity import NotFiniteError, require_finite, weights_digest


def weights():
    rng = np.random.default_rng(0)
    return {
        "embed": jnp.asarray(rng.normal(size=(6, 8)).astype(np.float32)),
        "blocks": {"q": jnp.asarray(rng.normal(size=(4, 8, 2)), jnp.bfloat16)},
    }


def test_every_value_and_its_place_and_name_count():
    ours = weights_digest(weights())
    assert weights_digest(weights()) == ours and len(ours) == 16
    others = [weights() for _ in range(5)]
    others[0]["embed"] = others[0]["embed"].at[3, 4].add(1e-6)
    others[1]["embed"] = others[1]["embed"][::-1]
    others[2]["embed"] = others[2]["embed"].reshape(8, 6)
    others[3]["blocks"] = {"k": others[3]["blocks"]["q"]}
    others[4]["blocks"]["q"] = others[4]["blocks"]["q"].astype(jnp.float32)
    assert len({ours, *map(weights_digest, others)}) == 6


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
def test_the_mesh_does_not_count():
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    split = jax.device_put(weights(), NamedSharding(mesh, PartitionSpec("x")))
    assert weights_digest(split) == weights_digest(weights())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value):
    require_finite(weights(), "step 3")
    wrong = weights()
    wrong["blocks"]["q"] = wrong["blocks"]["q"].at[1, :2, 0].set(value)
    with pytest.raises(NotFiniteError, match=r"step 3 .*: blocks/q \(2 values\)"):
        require_finite(wrong, "step 3")
