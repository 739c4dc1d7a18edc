"""The engine: a document depends on seed, number and prompt, on any mesh and in any batch."""

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
from tests.jpeglm_jax.runs import count_compilations

EOS, BOS, VOCAB, SEQ_LEN = 1, 2, 20, 24
UNFILTERED = SamplingParams()
GREEDY = SamplingParams(temperature=0.0)
ONE, EIGHT = (), (("replica", 2), ("fsdp", 2), ("tensor", 2))
PROMPTS = [np.array([BOS]), np.array([BOS, 5, 6]), np.array([BOS, 7]), np.array([BOS])] * 3


class Model:
    """A model of one layer with random weights; engines and weights are made once each."""

    def __init__(self):
        config = tiny(**{"model.layers": 1})
        self.spec = ModelSpec(model_config(config.model, VOCAB, "cpu"))
        self.weights, self.engines = {}, {}
        self.forward = jax.jit(lambda params, *rows: nnx.merge(self.spec.graph, params)(*rows))

    def params(self, sizes=ONE):
        if sizes not in self.weights:
            mesh = make_mesh(dict(sizes), devices=jax.devices()[: 8 if sizes else 1])
            self.weights[sizes] = mesh, self.spec.init_on(mesh, 3)
        return self.weights[sizes]

    def engine(self, sampling_params=UNFILTERED, sizes=ONE, seed=0, batch_size=8, constraint=None):
        key = sampling_params, sizes, seed, batch_size, constraint
        if key not in self.engines:
            self.engines[key] = Engine(
                self.spec,
                self.params(sizes)[0],
                sampling_params,
                batch_size=batch_size,
                seq_len=SEQ_LEN,
                seed=seed,
                eos=EOS,
                bos=BOS,
                constraint=constraint,
            )
        return self.engines[key]

    def sample(self, prompts, *options, sizes=ONE, numbers=None, **more):
        samples = self.engine(*options, sizes=sizes, **more)(
            self.params(sizes)[1], prompts, numbers
        )
        return sorted(samples, key=lambda sample: sample.number)

    def logits(self, row):
        """Logits at every position of a row but the last, from one forward pass."""
        padded = np.zeros((1, SEQ_LEN), np.int32)
        padded[0, : len(row)] = row
        positions = np.arange(SEQ_LEN)[None]
        found = self.forward(self.params()[1], padded, np.ones_like(padded), positions)
        return np.asarray(found)[0, : len(row) - 1]


@pytest.fixture(scope="module")
def model():
    return Model()


def whole_row(sample, start=BOS):
    """A document as the model reads it."""
    return np.concatenate([[start], sample.tokens, [EOS] * sample.complete]).astype(int)


def same(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x.tokens, y.tokens)
        and x.complete == y.complete
        and np.isclose(x.log_likelihood, y.log_likelihood, rtol=1e-4)
        for x, y in zip(a, b, strict=True)
    )


def test_a_document_depends_on_its_number_and_prompt_alone(model):
    together = model.sample(PROMPTS)
    assert len({tuple(sample.tokens) for sample in together}) > 6
    assert same(model.sample(PROMPTS[5:7], numbers=[5, 6]), together[5:7])
    assert not same(model.sample(PROMPTS, seed=1), together)


def test_a_document_does_not_depend_on_the_batch_or_on_when_it_enters(model):
    """Twelve documents through two rows: each enters when another has left."""
    together = model.sample(PROMPTS)
    assert len({len(sample.tokens) for sample in together}) > 3
    in_turn = model.sample(PROMPTS, batch_size=2)
    assert same(in_turn, together)
    backwards = model.sample(PROMPTS[::-1], numbers=range(11, -1, -1), batch_size=2)
    assert same(backwards, together)


def test_nothing_is_compiled_twice(model):
    model.sample(PROMPTS[1:2])
    with count_compilations() as compilations:
        assert len(model.sample(PROMPTS)) == 12
        assert len(model.sample(PROMPTS[:3])) == 3
    assert not compilations


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_mesh_does_not_change_the_samples(model, guidance):
    sampling_params = SamplingParams(guidance=guidance)
    split = model.sample(PROMPTS, sampling_params, sizes=EIGHT)
    assert same(split, model.sample(PROMPTS, sampling_params))


def test_guided_logits_are_extrapolated_from_the_unconditional_ones(model):
    """Greedy tokens are those of the guided logits, computed for whole rows."""
    prompts = [np.array([5]), np.array([6, 9]), np.array([7])]
    samples = model.sample(prompts, SamplingParams(temperature=0.0, guidance=2.5))
    for prompt, sample in zip(prompts, samples, strict=True):
        row = whole_row(sample, prompt[0])
        conditional, unconditional = model.logits(row), model.logits([BOS, *row[1:]])
        guided = unconditional + 2.5 * (conditional - unconditional)
        assert guided.argmax(-1)[len(prompt) - 1 :].tolist() == row[len(prompt) :].tolist()


def test_guidance_of_zero_ignores_the_label(model):
    prompts = [np.array([5]), np.array([6])]
    unconditional = model.sample([np.array([BOS])] * 2, GREEDY)
    guided = model.sample(prompts, SamplingParams(temperature=0.0, guidance=0.0))
    assert [s.tokens.tolist() for s in guided] == [s.tokens.tolist() for s in unconditional]


def test_prompts_are_kept_and_the_log_likelihood_is_that_of_the_whole_row(model):
    for prompt, sample in zip(PROMPTS, model.sample(PROMPTS), strict=True):
        assert sample.tokens[: len(prompt) - 1].tolist() == prompt[1:].tolist()
        row = whole_row(sample)
        assert len(row) <= SEQ_LEN
        assert EOS not in sample.tokens
        log_probs = jax.nn.log_softmax(model.logits(row))[np.arange(len(row) - 1), row[1:]]
        expected = float(log_probs[len(prompt) - 1 :].sum())
        assert sample.log_likelihood == pytest.approx(expected, rel=1e-3)


def test_temperature_zero_takes_the_most_likely_token(model):
    greedy = model.sample(PROMPTS[:4], GREEDY)
    for prompt, sample in zip(PROMPTS, greedy, strict=False):
        row = whole_row(sample)
        chosen = model.logits(row).argmax(-1)
        assert chosen[len(prompt) - 1 :].tolist() == row[len(prompt) :].tolist()
    assert same(greedy, model.sample(PROMPTS[:4], SamplingParams(top_k=1), seed=5))


class Alternating(NamedTuple):
    """Odd tokens after even ones and even ones after odd; EOS at the last position."""

    bos: int = BOS

    def start(self, prompts):
        return {"last": np.array([prompt[-1] for prompt in prompts], np.int32)}

    def min_tokens_to_end(self, state):
        return np.ones_like(state["last"])

    def allowed(self, state, remaining_B):
        fits = jnp.arange(VOCAB) % 2 != state["last"][:, None] % 2
        fits &= jnp.arange(VOCAB) > self.bos
        only_end = jnp.arange(VOCAB) == EOS
        return jnp.where(remaining_B[:, None] > 1, fits, only_end)

    def advance(self, state, tokens_B):
        return {"last": tokens_B}


@pytest.mark.parametrize("sizes", [ONE, EIGHT])
def test_a_constraint_holds_for_every_document(model, sizes):
    for sample in model.sample(PROMPTS, sizes=sizes, constraint=Alternating()):
        assert sample.complete and len(sample.tokens) == SEQ_LEN - 2
        sampled = sample.tokens[len(PROMPTS[sample.number]) - 1 :]
        assert (sampled > BOS).all()
        assert (np.diff(sampled.astype(int)) % 2 == 1).all()


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        model.sample([np.array([], int)])


def test_a_prompt_that_fills_the_sequence_length_is_refused(model):
    with pytest.raises(ValueError, match="prompt 0 has 24 tokens .* 24"):
        model.sample([np.full(SEQ_LEN, BOS)])
