"""Constrained clips of code words: valid to the last bit whatever is wanted, within every limit."""

import jax
import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.avc.codewords import alphabet as codewords
from data_pipelines.representations.base import UNREACHABLE
from jpeglm_jax.generation.constraint import make_constraint
from tests.data_pipelines.representations.avc import codeword_models
from tests.data_pipelines.representations.avc.clips import moving
from tests.data_pipelines.representations.avc.mutations import complaints
from tests.data_pipelines.representations.machines import names
from tests.jpeglm_jax.generation.test_constraint import random_documents

FEW = [
    dict(size=(32, 32), frames=3, slice_mbs=0, strip="headers"),
    dict(size=(32, 32), frames=3, slice_mbs=0, strip="headers", trained=True),
    dict(size=(48, 32), frames=3, slice_mbs=1),
    dict(size=(48, 32), frames=3, slice_mbs=0, strip="headers", places=True),
]
MANY = [
    dict(size=(64, 48), frames=8, min_frames=2, slice_mbs=5, strip="headers", qp=30),
    dict(size=(64, 48), frames=5, slice_mbs=7, trained=True),
    dict(size=(352, 288), frames=2, slice_mbs=0, strip="headers"),
    dict(size=(256, 144), frames=3, slice_mbs=1, trained=True),
]


def representation_of(settings):
    settings = dict(settings)
    trained = settings.pop("trained", False)
    return make("avc", tokenizer=codeword_models.path() if trained else "codewords", **settings)


def biases(representation):
    """What models may want, by name, float32 [V]: none knows anything of H.264."""
    pieces = representation.tokenizer.token_letters
    tokens = np.arange(representation.vocab_size)

    def holds(first, count):
        return np.array([((piece >= first) & (piece < first + count)).any() for piece in pieces])

    return {
        "nothing": 0.0 * tokens,
        "no end": np.where(tokens == representation.eos, -60.0, 0.0),
        "the end at once": np.where(tokens == representation.eos, 60.0, 0.0),
        "coefficients": 8.0 * holds(codewords.COEFF_TOKEN + 30, 32),
        "sums": 40.0 * holds(codewords.ADD_16, 23),
        "runs": 20.0 * holds(codewords.SKIP, 16) + 40.0 * holds(codewords.P, 1),
        "long tokens": 4.0 * np.array([len(piece) for piece in pieces]),
    }


def check(settings, limits, batch, seed):
    """Samples under every bias and limit; all are valid, canonical, and FFmpeg has no complaint."""
    representation = representation_of(settings)
    rules = make_constraint(representation)
    start = rules.start([np.array([representation.bos])] * batch)
    needed = int(rules.min_tokens_to_end(start)[0])
    for limit in limits:
        for name, bias in biases(representation).items():
            sampled, stuck = jax.device_get(
                random_documents(
                    rules,
                    start,
                    bias.astype(np.float32),
                    seed,
                    needed + limit,
                    needed + max(limits),
                )
            )
            assert not stuck, (name, limit)
            assert (sampled == representation.eos).sum(axis=1).tolist() == [1] * batch
            documents = [row[: int(np.argmax(row == representation.eos))] for row in sampled]
            judged = representation.validate_batch(documents)
            assert {judgement.error for judgement in judged} == {""}, (name, limit)
            stream = representation.tokenizer.decode(documents[0])
            letters = representation.tokenizer.letters(documents[0])
            np.testing.assert_array_equal(representation.streams.read(stream), letters)
            assert not complaints(representation, stream)


@pytest.mark.parametrize("settings", FEW, ids=names)
def test_every_clip_is_valid_whatever_is_wanted(settings):
    check(settings, limits=[60], batch=4, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("settings", FEW + MANY, ids=names)
def test_every_clip_is_valid_at_many_sizes_and_limits(settings):
    check(settings, limits=[0, 1, 2, 7, 100, 1500], batch=32, seed=1)


@pytest.mark.parametrize("settings", FEW, ids=names)
def test_the_next_tokens_are_those_that_steps_allow_and_some_leads_nearer(settings):
    representation = representation_of(settings)
    machine = representation.token_machine()
    frames, (width, height) = representation.frames, representation.size
    clip = representation.encode(moving(frames, width, height))
    state = type(machine.start())(*(np.full((1, 1), value) for value in machine.start()))
    every = np.arange(representation.vocab_size)
    for place, token in enumerate(clip):
        now = int(machine.min_tokens_to_end(state)[0, 0])
        after = machine.min_tokens_after(state)[0]
        if place % 40 == 0:
            stepped = machine.min_tokens_to_end(machine.step(state, every[None]))[0]
            np.testing.assert_array_equal(after, stepped)
        assert now == 0 or after.min() < now
        assert after[token] < UNREACHABLE
        state = machine.step(state, np.full((1, 1), token))
    assert machine.min_tokens_to_end(state)[0, 0] == 0


def test_prompts_are_followed_and_bytes_are_not():
    representation = make("avc", tokenizer="codewords", size=(32, 32), frames=3, slice_mbs=0)
    rules = make_constraint(representation)
    whole = representation.encode(moving(3, 32, 32))
    prompt = representation.prompt(whole, 0.5)
    state = rules.start([np.concatenate([[representation.bos], prompt])])
    # Two more pictures of skipped macroblocks, and the end token.
    assert int(rules.min_tokens_to_end(state)[0]) == 2 * 2 + 1
    with pytest.raises(ValueError, match="token 7 at position 1"):
        rules.start([np.array([representation.bos, codewords.IDR, 7])])
    with pytest.raises(ValueError, match=r"size \(16, 16\)"):
        representation.token_machine((16, 16))
    large = make("avc", tokenizer="codewords", size=(1024, 1024), frames=1, slice_mbs=0)
    with pytest.raises(ValueError, match="4,096 macroblocks"):
        large.token_machine()
