"""One token at a time gives what the whole row at once gives, at every place, on any mesh."""

import jax
import numpy as np
import pytest
from flax import nnx

from jpeglm_jax.generation import decoding
from jpeglm_jax.model.config import ModelConfig
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh
from jpeglm_jax.parallel.sharding import make_mesh

EIGHT = {"replica": 2, "fsdp": 2, "tensor": 2}
SPLIT = {"fsdp": 4, "sequence": 2}
PLAIN = {}
EVERYTHING = {"kv_heads": 2, "tied": True, "qk_norm": True}
ROWS, LENGTH = 8, 30
GIVEN = np.array([1, 2, 5, 9, 14, 14, 3, 20])  # places of each row's prompt


def spec_of(**changes):
    shape = dict(layers=2, width=32, heads=4, kv_heads=4, head_dim=8, ffn=48) | changes
    model = ModelConfig(vocab_size=50, dtype="float32", **shape)
    return ModelSpec(model)


def whole_rows(spec, params, tokens):
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return np.asarray(nnx.merge(spec.graph, params)(tokens, np.ones_like(tokens), places))


def cached(spec, mesh, params, tokens, given):
    """Logits at every place from the last of each prompt on; [rows, places, vocabulary]."""
    rows = sharding.named(mesh, "batch")
    where = decoding.cache_shardings(spec, mesh)
    weights = jit_on_mesh(
        lambda params: decoding.weights(spec, params),
        mesh,
        out_shardings=decoding.weight_shardings(spec, mesh),
    )(params)
    cache = jax.device_put(decoding.empty_cache(spec, *tokens.shape), where)
    read = jit_on_mesh(lambda *a: decoding.prefill(spec, *a), mesh, out_shardings=where)
    step = jit_on_mesh(lambda *a: decoding.step(spec, *a), mesh, out_shardings=(None, where))

    # What fills up short prompts is wrong on purpose: it must not be seen.
    filled = np.where(np.arange(tokens.shape[1]) < given[:, None] - 1, tokens, 49)
    prefilled = filled[:, : given.max() - 1]
    cache = read(weights, prefilled, np.arange(len(tokens), dtype=np.int32), cache)
    logits = np.full((*tokens.shape, spec.config.vocab_size), np.nan, np.float32)
    places = given - 1
    for _ in range(tokens.shape[1]):
        at = np.minimum(places, tokens.shape[1] - 1)  # rows at their end read it again
        newest = tokens[np.arange(len(tokens)), at]
        new, cache = step(weights, *jax.device_put((newest, at), (rows, rows)), cache)
        logits[np.arange(len(tokens)), at] = new
        places = places + 1
    return logits


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [(PLAIN, {}), (EVERYTHING, {}), (EVERYTHING, EIGHT), (EVERYTHING, SPLIT)],
    ids=["plain", "grouped, tied and normed", "the same on eight devices", "where rows are split"],
)
def test_cached_logits_are_those_of_the_whole_row_at_every_place(changes, sizes):
    spec = spec_of(**changes)
    mesh = make_mesh(sizes, devices=jax.devices()[: 8 if sizes else 1])
    tokens = np.random.RandomState(1).randint(0, 50, (ROWS, LENGTH)).astype(np.int32)
    ours = cached(spec, mesh, spec.init_on(mesh, 3), tokens, GIVEN)
    theirs = whole_rows(spec, spec.init(3), tokens)
    assert theirs.std() > 0.5
    drawn = np.arange(LENGTH) >= GIVEN[:, None] - 1
    assert (np.isfinite(ours).all(-1) == drawn).all()
    np.testing.assert_allclose(ours[drawn], theirs[drawn], atol=1e-4, rtol=0)
