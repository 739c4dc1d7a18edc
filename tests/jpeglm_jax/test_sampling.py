"""Drawing: what is drawn depends on the seed and the prompt, filters keep what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeglm_jax.sampling import Filter, Sampler
from jpeglm_jax.sharding import make_mesh
from jpeglm_jax.step import Recipe, compile_init, model_config
from tests.jpeglm_jax.conftest import tiny

EOS, BOS, VOCAB = 1, 2, 20
NO_FILTER = Filter()


@pytest.fixture(scope="module")
def recipe():
    config = tiny()
    model = model_config(config, VOCAB, "cpu")
    return Recipe(model, config.optimizer, config.steps, EOS, np.ones(VOCAB, np.int32))


def sampler_of(recipe, mesh, choose=NO_FILTER, length=24, seed=0):
    return Sampler(recipe, mesh, choose, batch_size=8, length=length, seed=seed)


def draw(recipe, prompts, sizes=None, first=0, **options):
    mesh = make_mesh(sizes or {}, devices=jax.devices()[: 8 if sizes else 1])
    params = compile_init(recipe, mesh)(3).params
    return list(sampler_of(recipe, mesh, **options)(params, prompts, first))


def same(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x.tokens, y.tokens)
        and x.complete == y.complete
        and np.isclose(x.log_likelihood, y.log_likelihood, rtol=1e-4)
        for x, y in zip(a, b, strict=True)
    )


PROMPTS = [np.array([BOS]), np.array([BOS, 5, 6]), np.array([BOS, 7]), np.array([BOS])] * 3


def test_a_document_depends_on_its_number_and_prompt_alone(recipe):
    together = draw(recipe, PROMPTS)
    assert len({tuple(sample.tokens) for sample in together}) > 6
    assert same(draw(recipe, PROMPTS[5:7], first=5), together[5:7])
    assert not same(draw(recipe, PROMPTS, seed=1), together)


def test_any_mesh_draws_the_same(recipe):
    assert same(
        draw(recipe, PROMPTS, {"replica": 2, "fsdp": 2, "tensor": 2}), draw(recipe, PROMPTS)
    )


def test_prompts_are_kept_and_the_likelihood_is_that_of_the_whole_row(recipe):
    samples = draw(recipe, PROMPTS)
    graph, params = recipe.graph, recipe.init(3).params
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        assert sample.tokens[: len(prompt) - 1].tolist() == prompt[1:].tolist()
        row = np.concatenate([[BOS], sample.tokens, [EOS] * sample.complete]).astype(int)
        assert len(row) <= 24
        assert EOS not in sample.tokens
        places = np.arange(len(row))[None]
        logits = nnx.merge(graph, params)(row[None], np.ones_like(places), places)
        log_probs = jax.nn.log_softmax(logits[0, :-1])[np.arange(len(row) - 1), row[1:]]
        drawn = float(log_probs[len(prompt) - 1 :].sum())
        assert sample.log_likelihood == pytest.approx(drawn, rel=1e-3)


def test_temperature_zero_takes_the_likeliest(recipe):
    greedy = draw(recipe, PROMPTS[:4], choose=Filter(temperature=0.0))
    assert same(greedy, draw(recipe, PROMPTS[:4], choose=Filter(temperature=0.0), seed=9))
    assert same(greedy, draw(recipe, PROMPTS[:4], choose=Filter(top_k=1), seed=5))


LOGITS = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]]))


@pytest.mark.parametrize(
    ("choose", "kept"),
    [
        (Filter(), [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (Filter(top_k=2), [[1, 0, 1, 0], [0, 0, 1, 1]]),
        (Filter(top_k=9), [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (Filter(top_p=0.6), [[1, 0, 1, 0], [0, 0, 1, 1]]),
        (Filter(top_p=0.45), [[1, 0, 0, 0], [0, 0, 1, 1]]),
        (Filter(top_p=1e-6), [[1, 0, 0, 0], [0, 0, 0, 1]]),
        (Filter(top_k=3, top_p=0.8), [[1, 0, 1, 0], [0, 1, 1, 1]]),
        (Filter(temperature=0.0), [[1, 0, 0, 0], [0, 0, 0, 1]]),
    ],
)
def test_a_filter_keeps_what_it_says(choose, kept):
    np.testing.assert_array_equal(np.isfinite(choose(LOGITS)), np.array(kept, bool))


def test_filtered_logits_keep_their_proportions():
    probs = jax.nn.softmax(Filter(temperature=2.0, top_k=2)(LOGITS))
    np.testing.assert_allclose(probs[0, 0] / probs[0, 2], (0.5 / 0.3) ** 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"temperature": -1}, "temperature"), ({"top_k": -1}, "top_k"), ({"top_p": 0}, "top_p")],
)
def test_impossible_filters_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(Filter(), **change)


def test_a_prompt_that_fills_the_context_is_refused(recipe):
    with pytest.raises(ValueError, match="a prompt of 24 tokens"):
        draw(recipe, [np.full(24, BOS)])
