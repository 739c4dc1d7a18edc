"""The engine: what is drawn depends on the seed and the prompt, on any mesh, in any company."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel.sharding import make_mesh
from tests.jpeglm_jax.conftest import tiny

EOS, BOS, VOCAB = 1, 2, 20
NO_FILTER = SamplingParams()


@pytest.fixture(scope="module")
def spec():
    config = tiny()
    model = model_config(config.model, VOCAB, "cpu")
    return ModelSpec(model)


def engine_of(spec, mesh, sampling_params=NO_FILTER, length=24, seed=0, batch_size=8, **options):
    return Engine(
        spec,
        mesh,
        sampling_params,
        batch_size=batch_size,
        length=length,
        seed=seed,
        eos=EOS,
        bos=BOS,
        **options,
    )


def draw(spec, prompts, sizes=None, numbers=None, **options):
    mesh = make_mesh(sizes or {}, devices=jax.devices()[: 8 if sizes else 1])
    params = spec.init_on(mesh, 3)
    samples = engine_of(spec, mesh, **options)(params, prompts, numbers)
    return sorted(samples, key=lambda sample: sample.number)


def same(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x.tokens, y.tokens)
        and x.complete == y.complete
        and np.isclose(x.log_likelihood, y.log_likelihood, rtol=1e-4)
        for x, y in zip(a, b, strict=True)
    )


PROMPTS = [np.array([BOS]), np.array([BOS, 5, 6]), np.array([BOS, 7]), np.array([BOS])] * 3


def test_a_document_depends_on_its_number_and_prompt_alone(spec):
    together = draw(spec, PROMPTS)
    assert len({tuple(sample.tokens) for sample in together}) > 6
    assert same(draw(spec, PROMPTS[5:7], numbers=[5, 6]), together[5:7])
    assert not same(draw(spec, PROMPTS, seed=1), together)


def test_a_document_is_the_same_whoever_shares_the_batch_and_whenever_it_enters(spec):
    """Twelve documents through two rows: each enters when another has left."""
    together = draw(spec, PROMPTS)
    assert len({len(sample.tokens) for sample in together}) > 3
    in_turn = draw(spec, PROMPTS, batch_size=2)
    assert same(in_turn, together)
    backwards = draw(spec, PROMPTS[::-1], numbers=range(11, -1, -1), batch_size=2)
    assert same(backwards, together)


def test_nothing_is_compiled_twice(spec):
    mesh = make_mesh({}, devices=jax.devices()[:1])
    params = spec.init_on(mesh, 3)
    engine = engine_of(spec, mesh, batch_size=4)
    for count in (12, 3):
        assert len(list(engine(params, PROMPTS[:count]))) == count
    for function in (engine._enter, engine._read, engine._advance, engine._weights):
        assert function.jitted._cache_size() == 1


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_any_mesh_draws_the_same(spec, guidance):
    sampling_params = SamplingParams(guidance=guidance)
    split = draw(
        spec, PROMPTS, {"replica": 2, "fsdp": 2, "tensor": 2}, sampling_params=sampling_params
    )
    assert same(split, draw(spec, PROMPTS, sampling_params=sampling_params))


def test_guidance_moves_away_from_the_model_without_a_label(spec):
    """Greedy draws are those of the guided logits, computed of whole rows."""
    prompts = [np.array([5]), np.array([6, 9]), np.array([7])]
    samples = draw(spec, prompts, sampling_params=SamplingParams(temperature=0.0, guidance=2.5))
    params = spec.init(3)

    def logits(row):
        places = np.arange(len(row))[None]
        return nnx.merge(spec.graph, params)(row[None], np.ones_like(places), places)[0]

    for prompt, sample in zip(prompts, samples, strict=True):
        row = np.concatenate([prompt[:1], sample.tokens, [EOS] * sample.complete]).astype(int)
        given, plain = logits(row[:-1]), logits(np.concatenate([[BOS], row[1:-1]]))
        guided = plain + 2.5 * (given - plain)
        chosen = np.asarray(jnp.argmax(guided, axis=-1))
        assert chosen[len(prompt) - 1 :].tolist() == row[len(prompt) :].tolist()


def test_a_guided_model_is_itself_at_one_and_without_its_label_at_zero(spec):
    greedy = SamplingParams(temperature=0.0)
    prompts = [np.array([5]), np.array([6])]
    plain = draw(spec, [np.array([BOS])] * 2, sampling_params=greedy)
    unguided = draw(spec, prompts, sampling_params=SamplingParams(temperature=0.0, guidance=0.0))
    assert [s.tokens.tolist() for s in unguided] == [s.tokens.tolist() for s in plain]


def test_prompts_are_kept_and_the_likelihood_is_that_of_the_whole_row(spec):
    samples = draw(spec, PROMPTS)
    graph, params = spec.graph, spec.init(3)
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


def test_temperature_zero_takes_the_likeliest(spec):
    greedy = draw(spec, PROMPTS[:4], sampling_params=SamplingParams(temperature=0.0))
    assert same(
        greedy,
        draw(spec, PROMPTS[:4], sampling_params=SamplingParams(temperature=0.0), seed=9),
    )
    assert same(greedy, draw(spec, PROMPTS[:4], sampling_params=SamplingParams(top_k=1), seed=5))


class Alternating(NamedTuple):
    """Odd tokens after even ones and even ones after odd, ended by EOS in the last place."""

    bos: int = BOS

    def start(self, prompts):
        return {"last": np.array([prompt[-1] for prompt in prompts], np.int32)}

    def needed(self, state):
        return np.ones_like(state["last"])

    def allowed(self, state, remaining_B):
        fits = jnp.arange(VOCAB) % 2 != state["last"][:, None] % 2
        fits &= jnp.arange(VOCAB) > self.bos
        only_end = jnp.arange(VOCAB) == EOS
        return jnp.where(remaining_B[:, None] > 1, fits, only_end)

    def advance(self, state, tokens_B):
        return {"last": tokens_B}


@pytest.mark.parametrize("sizes", [None, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_a_constraint_holds_for_every_document(spec, sizes):
    for sample in draw(spec, PROMPTS, sizes, constraint=Alternating()):
        assert sample.complete and len(sample.tokens) == 22
        drawn = sample.tokens[len(PROMPTS[sample.number]) - 1 :]
        assert (drawn > BOS).all()
        assert (np.diff(drawn.astype(int)) % 2 == 1).all()


def test_an_empty_prompt_is_refused(spec):
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        draw(spec, [np.array([], int)])


def test_a_prompt_that_fills_the_context_is_refused(spec):
    with pytest.raises(ValueError, match="a prompt of 24 tokens"):
        draw(spec, [np.full(24, BOS)])
