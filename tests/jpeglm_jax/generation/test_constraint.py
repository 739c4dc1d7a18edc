"""Constrained documents: strictly valid whatever is wanted, ended within every limit."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.representations import make
from jpeglm_jax.generation.constraint import constraint
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


def names(settings):
    return "-".join(str(value).rpartition("/")[2] for value in settings.values())


def wishes(representation):
    """What models may want, by name, float32 [V]: none knows anything of JPEG."""
    pieces, tokens = representation.tokenizer.token_bytes, np.arange(representation.vocab_size)
    ff = np.array([b"\xff" in piece for piece in pieces])
    ones = np.array([sum(byte.bit_count() for byte in piece) for piece in pieces])
    return {
        "nothing": 0.0 * tokens,
        "no end": np.where(tokens == representation.eos, -60.0, 0.0),
        "the end at once": np.where(tokens == representation.eos, 60.0, 0.0),
        "FF": 60.0 * ff,
        "long codes": 8.0 * ones,
        "long tokens": 8.0 * representation.byte_lengths,
    }


@functools.partial(jax.jit, static_argnames="longest")
def wander(rules, start, wish_V, seed, length, longest):
    """Tokens [B, longest], -1 after the end: the likeliest allowed under a wish and noise.

    length: places that there are.
    """
    batch = start.begun.shape[0]

    def one(place, carry):
        state, tokens_BxT, done_B, stuck = carry
        allowed_BxV = rules.allowed(state, jnp.full(batch, length - place))
        key = jax.random.fold_in(jax.random.key(seed), place)
        logits = wish_V + 4 * jax.random.normal(key, allowed_BxV.shape)
        drawn_B = jnp.argmax(jnp.where(allowed_BxV, logits, -jnp.inf), axis=1)
        stuck |= jnp.any(~done_B & ~jnp.any(allowed_BxV, axis=1))
        tokens_BxT = tokens_BxT.at[:, place].set(jnp.where(done_B, -1, drawn_B))
        return rules.advance(state, drawn_B), tokens_BxT, done_B | (drawn_B == rules.eos), stuck

    tokens_BxT = jnp.full((batch, longest), -1)
    start = (start, tokens_BxT, jnp.zeros(batch, bool), jnp.bool(False))
    _, tokens_BxT, _, stuck = jax.lax.fori_loop(0, length, one, start)
    return tokens_BxT, stuck


def judge(settings, limits, batch, seed):
    """Draws under every wish and limit; checks that all is valid and ended by the end token."""
    representation = make("jpeg", **settings)
    rules = constraint(representation)
    start = rules.start([np.array([representation.bos])] * batch)
    needed = int(rules.needed(start)[0])
    for limit in limits:
        for name, wish in wishes(representation).items():
            wish = wish.astype(np.float32)
            drawn, stuck = jax.device_get(
                wander(rules, start, wish, seed, needed + limit, needed + max(limits))
            )
            assert not stuck
            assert (drawn == representation.eos).sum(axis=1).tolist() == [1] * batch
            documents = [row[: int(np.argmax(row == representation.eos))] for row in drawn]
            judged = representation.validate_batch(documents)
            errors = {judgement.error for judgement in judged}
            assert errors == {""}, (name, limit, errors)
            if limit and name in ("nothing", "FF"):
                assert len({document.tobytes() for document in documents}) > batch // 2


@pytest.mark.parametrize("settings", FEW, ids=names)
def test_every_file_is_valid_whatever_is_wanted(settings):
    judge(settings, limits=[0, 40], batch=16, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("settings", FEW + MANY, ids=names)
def test_every_file_is_valid_at_many_sizes_and_limits(settings):
    judge(settings, limits=[0, 1, 2, 7, 100, 1500], batch=64, seed=1)


@pytest.fixture(scope="module")
def grey():
    """A representation and a model of it with random weights."""
    representation = make("jpeg", size=16, mode="L", quality=10, strip="header", num_labels=3)
    config = tiny()
    model = model_config(config.model, representation.vocab_size, "cpu")
    return representation, ModelSpec(model)


def draw(grey, prompts, sizes=None, length=40, **options):
    representation, spec = grey
    mesh = make_mesh(sizes or {}, devices=jax.devices()[: 8 if sizes else 1])
    engine = Engine(
        spec,
        mesh,
        SamplingParams(**options),
        batch_size=8,
        length=length,
        seed=0,
        eos=representation.eos,
        constraint=constraint(representation),
    )
    return sorted(engine(spec.init_on(mesh, 3), prompts), key=lambda s: s.number)


@pytest.mark.parametrize("sizes", [None, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_random_weights_draw_valid_files_and_keep_their_prompts(grey, sizes):
    representation, _ = grey
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    whole = representation.encode(image)
    starts = [representation.bos, representation.label_token(2)]
    beginnings = [whole[:0], representation.prompt(whole, 0.5), whole[:1]]
    prompts = [np.array([start, *beginning]) for start in starts for beginning in beginnings] * 2
    samples = draw(grey, prompts, sizes)
    assert all(sample.complete for sample in samples)
    for sample in samples:
        given = prompts[sample.number][1:]
        np.testing.assert_array_equal(sample.tokens[: len(given)], given)
        assert representation.validate(sample.tokens).error == ""
    assert len({sample.tokens.tobytes() for sample in samples}) > 8


def test_the_shortest_limit_is_kept_and_a_shorter_one_refused(grey):
    # Four MCUs of a byte and a marker of two each, then the end; before them the start token.
    representation, _ = grey
    bos = np.array([representation.bos])
    first, second = draw(grey, [bos] * 2, length=14, temperature=0.0)
    assert representation.validate(first.tokens).valid
    np.testing.assert_array_equal(first.tokens, second.tokens)
    with pytest.raises(ValueError, match="takes 14 places, more than the 13 there are"):
        draw(grey, [bos], length=13)


def test_prompts_that_no_valid_file_begins_with_are_refused(grey):
    representation, _ = grey
    rules = constraint(representation)
    for tokens, sentence in [
        ([0xFF, 0xD9], "prompt 1: no valid document has D9 for byte 1"),
        ([0, representation.eos], "prompt 1: token 257 at place 1 stands for no bytes"),
        ([-5], "prompt 1: token -5 at place 0 stands for no bytes"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            rules.start([np.array([representation.bos]), np.array([representation.bos, *tokens])])


def test_any_tokenisation_of_the_same_bytes_leads_to_the_same_state():
    representation = make("jpeg", size=32, tokenizer=BPE)
    rules = constraint(representation)
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
    with pytest.raises(ValueError, match=r"no token for 1 bytes \(FF\)"):
        constraint(representation)
