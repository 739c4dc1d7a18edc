"""One token at a time gives what the whole row at once gives, at every place, on any mesh."""

import jax
import numpy as np
import pytest
from flax import nnx

from jpeglm_jax.generation import decoding
from jpeglm_jax.model.llama import ModelConfig
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.sharding import make_mesh
from jpeglm_jax.training.step import Recipe, compile_init, compiled
from tests.jpeglm_jax.conftest import tiny

EIGHT = {"replica": 2, "fsdp": 2, "tensor": 2}
SPLIT = {"fsdp": 4, "sequence": 2}
PLAIN = {}
EVERYTHING = {"kv_heads": 2, "tied": True, "qk_norm": True}
ROWS, LENGTH = 8, 30
GIVEN = np.array([1, 2, 5, 9, 14, 14, 3, 20])  # places of each row's prompt


def recipe_of(**changes):
    shape = dict(layers=2, width=32, heads=4, kv_heads=4, head_dim=8, ffn=48) | changes
    config = tiny()
    model = ModelConfig(vocab_size=50, dtype="float32", **shape)
    return Recipe(model, config.optimizer, config.steps, 1, np.ones(50, np.int32))


def whole_rows(recipe, params, tokens):
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return np.asarray(nnx.merge(recipe.graph, params)(tokens, np.ones_like(tokens), places))


def cached(recipe, mesh, params, tokens, given):
    """Logits at every place from the last of each prompt on; [rows, places, vocabulary]."""
    rows = sharding.named(mesh, "batch")
    where = decoding.cache_shardings(recipe, mesh)
    weights = compiled(
        lambda params: decoding.weights(recipe, params),
        mesh,
        out_shardings=decoding.weight_shardings(recipe, mesh),
    )(params)
    cache = jax.device_put(decoding.empty_cache(recipe, *tokens.shape), where)
    read = compiled(lambda *a: decoding.prefill(recipe, *a), mesh, out_shardings=where)
    step = compiled(lambda *a: decoding.step(recipe, *a), mesh, out_shardings=(None, where))

    # What fills up short prompts is wrong on purpose: it must not be seen.
    filled = np.where(np.arange(tokens.shape[1]) < given[:, None] - 1, tokens, 49)
    prefilled = filled[:, : given.max() - 1]
    cache = read(weights, prefilled, np.arange(len(tokens), dtype=np.int32), cache)
    logits = np.full((*tokens.shape, recipe.model.vocab_size), np.nan, np.float32)
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
    recipe = recipe_of(**changes)
    mesh = make_mesh(sizes, devices=jax.devices()[: 8 if sizes else 1])
    tokens = np.random.RandomState(1).randint(0, 50, (ROWS, LENGTH)).astype(np.int32)
    ours = cached(recipe, mesh, compile_init(recipe, mesh)(3).params, tokens, GIVEN)
    theirs = whole_rows(recipe, recipe.init(3).params, tokens)
    assert theirs.std() > 0.5
    drawn = np.arange(LENGTH) >= GIVEN[:, None] - 1
    assert (np.isfinite(ours).all(-1) == drawn).all()
    np.testing.assert_allclose(ours[drawn], theirs[drawn], atol=1e-4, rtol=0)
