"""Constrained documents: strictly valid for any logits, and ended within any length limit."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.representations import make
from jpeglm_jax.generation.constraint import make_constraint
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel.sharding import make_mesh
from tests.jpeglm_jax.conftest import tiny

GOLDEN = Path(__file__).parents[2] / "golden" / "tokenizer"
BPE = str(GOLDEN / "trained_here.model")
DUMMY_PREFIX = str(GOLDEN / "dummy_prefix.model")
UNKNOWN_PREFIX = str(GOLDEN / "unknown_prefix.model")

FEW = [
    dict(size=16, mode="L", quality=10, restart_interval=1, strip="header"),
    dict(size=(40, 24), quality=25, restart_interval=1, strip="tables"),
    dict(size=24, mode="L", restart_interval=2, tokenizer=BPE),
]
MANY = [
    dict(size=(17, 23), mode="L", quality=100, restart_interval=0, strip="none"),
    dict(size=48, quality=75, restart_interval=0, strip="header"),
    dict(size=160, quality=25, restart_interval=1),
    dict(size=(70, 41), quality=60, subsampling="4:2:2", restart_interval=3, strip="header"),
    dict(size=40, quality=90, subsampling="4:4:4", restart_interval=7, strip="none"),
    dict(size=(8, 200), quality=5, subsampling="4:4:4", restart_interval=0),
    dict(size=48, tokenizer=BPE, num_labels=10),
    dict(size=(40, 24), subsampling="4:2:2", restart_interval=0, tokenizer=UNKNOWN_PREFIX),
    dict(size=32, mode="L", restart_interval=0, strip="header", tokenizer=DUMMY_PREFIX),
]

EIGHT = {"replica": 2, "fsdp": 2, "tensor": 2}


def names(settings):
    return "-".join(str(value).rpartition("/")[2] for value in settings.values())


def logit_biases(representation):
    """Logits of models that know nothing of JPEG, by name, [V]."""
    pieces, tokens = representation.tokenizer.token_bytes, np.arange(representation.vocab_size)
    ff = np.array([b"\xff" in piece for piece in pieces])
    ones = np.array([sum(byte.bit_count() for byte in piece) for piece in pieces])
    return {
        "none": 0.0 * tokens,
        "no end": np.where(tokens == representation.eos, -60.0, 0.0),
        "end at once": np.where(tokens == representation.eos, 60.0, 0.0),
        "FF": 60.0 * ff,
        "long codes": 8.0 * ones,
        "long tokens": 8.0 * representation.tokenizer.byte_lengths,
    }


@functools.partial(jax.jit, static_argnames="max_length")
def random_documents(rules, start, bias_V, seed, length, max_length):
    """Tokens [B, max_length], -1 after the end: the most likely allowed ones of bias and noise.

    length: positions that remain.
    """
    batch = jax.tree.leaves(start)[0].shape[0]

    def one(position, carry):
        state, tokens_BxT, done_B, stuck = carry
        allowed_BxV = rules.allowed(state, jnp.full(batch, length - position))
        key = jax.random.fold_in(jax.random.key(seed), position)
        logits = bias_V + 4 * jax.random.normal(key, allowed_BxV.shape)
        chosen_B = jnp.argmax(jnp.where(allowed_BxV, logits, -jnp.inf), axis=1)
        stuck |= jnp.any(~done_B & ~jnp.any(allowed_BxV, axis=1))
        tokens_BxT = tokens_BxT.at[:, position].set(jnp.where(done_B, -1, chosen_B))
        return rules.advance(state, chosen_B), tokens_BxT, done_B | (chosen_B == rules.eos), stuck

    tokens_BxT = jnp.full((batch, max_length), -1)
    start = (start, tokens_BxT, jnp.zeros(batch, bool), jnp.bool(False))
    _, tokens_BxT, _, stuck = jax.lax.fori_loop(0, length, one, start)
    return tokens_BxT, stuck


def check_documents(settings, limits, batch, seed):
    """Samples under every bias and limit; checks that all are valid and end with the end token."""
    representation = make("jpeg", **settings)
    rules = make_constraint(representation)
    start = rules.start([np.array([representation.bos])] * batch)
    needed = int(rules.min_tokens_to_end(start)[0])
    for limit in limits:
        for name, bias in logit_biases(representation).items():
            bias = bias.astype(np.float32)
            rows, stuck = jax.device_get(
                random_documents(rules, start, bias, seed, needed + limit, needed + max(limits))
            )
            assert not stuck
            assert (rows == representation.eos).sum(axis=1).tolist() == [1] * batch
            documents = [row[: int(np.argmax(row == representation.eos))] for row in rows]
            errors = {validity.error for validity in representation.validate_batch(documents)}
            assert errors == {""}, (name, limit, errors)
            if limit and name in ("none", "FF"):
                assert len({document.tobytes() for document in documents}) > batch // 2


@pytest.mark.parametrize("settings", FEW, ids=names)
def test_every_file_is_valid_for_any_logits(settings):
    check_documents(settings, limits=[0, 40], batch=16, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("settings", FEW + MANY, ids=names)
def test_every_file_is_valid_at_many_sizes_and_limits(settings):
    check_documents(settings, limits=[0, 1, 2, 7, 100, 1500], batch=64, seed=1)


@pytest.fixture(scope="module")
def grey():
    """A representation and a model of it with random weights."""
    representation = make("jpeg", size=16, mode="L", quality=10, strip="header", num_labels=3)
    config = tiny()
    config.model.layers = 1
    model = model_config(config.model, representation.vocab_size, "cpu")
    return representation, ModelSpec(model)


@functools.cache
def engine_of(grey, split, seq_len, **options):
    representation, spec = grey
    mesh = make_mesh(EIGHT if split else {}, devices=jax.devices()[: 8 if split else 1])
    engine = Engine(
        spec,
        mesh,
        SamplingParams(**options),
        batch_size=8,
        seq_len=seq_len,
        seed=0,
        eos=representation.eos,
        constraint=make_constraint(representation),
    )
    return engine, spec.init_on(mesh, 3)


def sample(grey, prompts, split=False, seq_len=40, **options):
    engine, params = engine_of(grey, split, seq_len, **options)
    return sorted(engine(params, prompts), key=lambda s: s.number)


@pytest.mark.parametrize("split", [False, True])
def test_random_weights_sample_valid_files_and_keep_their_prompts(grey, split):
    representation, _ = grey
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    whole = representation.encode(image)
    starts = [representation.bos, representation.label_token(2)]
    prefixes = [whole[:0], representation.prompt(whole, 0.5), whole[:1]]
    prompts = [np.array([start, *prefix]) for start in starts for prefix in prefixes] * 2
    samples = sample(grey, prompts, split)
    assert all(found.complete for found in samples)
    for found in samples:
        prefix = prompts[found.number][1:]
        np.testing.assert_array_equal(found.tokens[: len(prefix)], prefix)
        assert representation.validate(found.tokens).error == ""
    assert len({found.tokens.tobytes() for found in samples}) > 8


def test_the_min_sequence_length_suffices_and_a_shorter_one_is_refused(grey):
    # Four MCUs of a byte and a marker of two each, then the end; before them the start token.
    representation, _ = grey
    bos = np.array([representation.bos])
    first, second = sample(grey, [bos] * 2, seq_len=14, temperature=0.0)
    assert representation.validate(first.tokens).valid
    np.testing.assert_array_equal(first.tokens, second.tokens)
    with pytest.raises(ValueError, match="prompt 0 takes 14 .* 13"):
        sample(grey, [bos], seq_len=13)


def test_prompts_that_no_valid_file_begins_with_are_refused(grey):
    representation, _ = grey
    rules = make_constraint(representation)
    for tokens, found in [
        ([0xFF, 0xD9], "prompt 1: .* D9 for byte 1"),
        ([0, representation.eos], "prompt 1: token 257 at position 1"),
        ([-5], "prompt 1: token -5 at position 0"),
    ]:
        with pytest.raises(ValueError, match=found):
            rules.start([np.array([representation.bos]), np.array([representation.bos, *tokens])])


def test_any_tokenisation_of_the_same_bytes_leads_to_the_same_state():
    representation = make("jpeg", size=32, tokenizer=BPE)
    rules = make_constraint(representation)
    whole = representation.encode(Image.effect_noise((32, 32), 80))
    stream = representation.tokenizer.decode(whole)
    single = [representation.tokenizer.token_bytes.index(bytes([byte])) for byte in stream]
    assert len(single) > len(whole)
    states = [rules.start([np.array([1, *tokens])]) for tokens in (whole, single)]
    advanced = rules.start([np.array([representation.bos])])
    advance = jax.jit(lambda rules, state, token: rules.advance(state, token))
    for token in whole:
        advanced = advance(rules, advanced, np.array([token], np.int32))
    expected = jax.tree.map(lambda leaf: leaf.tolist(), states[0])
    for state in (states[1], advanced):
        assert jax.tree.map(lambda leaf: leaf.tolist(), state) == expected
    allowed = jax.jit(lambda rules, state: rules.allowed(state, jnp.array([1])))
    assert np.flatnonzero(allowed(rules, advanced)).tolist() == [representation.eos]


def test_a_tokenizer_without_all_bytes_is_refused(monkeypatch):
    representation = make("jpeg", size=32, tokenizer=BPE)
    pieces = list(representation.tokenizer.token_bytes)
    pieces[pieces.index(b"\xff")] = b""
    monkeypatch.setitem(vars(representation.tokenizer), "token_bytes", tuple(pieces))
    with pytest.raises(ValueError, match=r"1 bytes \(FF\)"):
        make_constraint(representation)
