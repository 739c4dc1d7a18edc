"""Decoding with a cache gives the logits of one forward pass, at every position, on any mesh."""

import functools

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
EVERYTHING = {"kv_heads": 2, "tied": True, "qk_norm": True}
ROWS, LENGTH = 8, 30
PROMPT_LENGTHS = np.array([1, 2, 5, 9, 14, 14, 3, 20])


@functools.cache
def spec_of(everything):
    shape = dict(layers=2, width=32, heads=4, kv_heads=4, head_dim=8, ffn=48)
    shape |= EVERYTHING if everything else {}
    model = ModelConfig(vocab_size=50, dtype="float32", **shape)
    return ModelSpec(model)


@functools.cache
def expected_logits(everything):
    """Tokens [rows, length], and logits of one forward pass [rows, length, vocabulary]."""
    spec = spec_of(everything)
    tokens = np.random.RandomState(1).randint(0, 50, (ROWS, LENGTH)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)

    @jax.jit
    def forward():
        return nnx.merge(spec.graph, spec.init(3))(tokens, np.ones_like(tokens), positions)

    return tokens, np.asarray(forward())


def cached(spec, mesh, params, tokens, prompt_lengths):
    """Logits from the last position of each prompt on, NaN before; [rows, length, vocabulary]."""
    rows = sharding.named(mesh, "batch")
    where = decoding.cache_shardings(spec, mesh)
    weights = jit_on_mesh(
        lambda params: decoding.weights(spec, params),
        mesh,
        out_shardings=decoding.weight_shardings(spec, mesh),
    )(params)
    cache = jax.device_put(decoding.empty_cache(spec, *tokens.shape), where)
    prefill = jit_on_mesh(lambda *a: decoding.prefill(spec, *a), mesh, out_shardings=where)
    step = jit_on_mesh(lambda *a: decoding.step(spec, *a), mesh, out_shardings=(None, where))

    # The padding of short prompts is wrong on purpose: it must not be read.
    padded = np.where(np.arange(tokens.shape[1]) < prompt_lengths[:, None] - 1, tokens, 49)
    prefilled = padded[:, : prompt_lengths.max() - 1]
    cache = prefill(weights, prefilled, np.arange(len(tokens), dtype=np.int32), cache)
    logits = np.full((*tokens.shape, spec.config.vocab_size), np.nan, np.float32)
    positions = prompt_lengths - 1
    for _ in range(tokens.shape[1]):
        at = np.minimum(positions, tokens.shape[1] - 1)  # finished rows repeat their last step
        newest = tokens[np.arange(len(tokens)), at]
        new, cache = step(weights, *jax.device_put((newest, at), (rows, rows)), cache)
        logits[np.arange(len(tokens)), at] = new
        positions = positions + 1
    return logits


@pytest.mark.parametrize(
    ("everything", "sizes"),
    [(False, {}), (True, {}), (True, EIGHT), (True, SPLIT)],
    ids=["plain", "grouped, tied and normed", "the same on eight devices", "sequence axis split"],
)
def test_cached_logits_equal_those_of_one_forward_pass_at_every_position(everything, sizes):
    spec = spec_of(everything)
    mesh = make_mesh(sizes, devices=jax.devices()[: 8 if sizes else 1])
    tokens, expected = expected_logits(everything)
    logits = cached(spec, mesh, spec.init_on(mesh, 3), tokens, PROMPT_LENGTHS)
    assert expected.std() > 0.5
    decoded = np.arange(LENGTH) >= PROMPT_LENGTHS[:, None] - 1
    assert (np.isfinite(logits).all(-1) == decoded).all()
    np.testing.assert_allclose(logits[decoded], expected[decoded], atol=1e-4, rtol=0)
