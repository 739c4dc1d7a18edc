"""Constrained documents of code words: strictly valid whatever is wanted, within every limit."""

import jax
import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.base import UNREACHABLE
from jpeglm_jax.generation.constraint import make_constraint
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel.sharding import make_mesh
from tests.data_pipelines.representations.jpeg import codeword_models
from tests.data_pipelines.representations.jpeg.mutations import synthetic
from tests.jpeglm_jax.conftest import tiny
from tests.jpeglm_jax.generation.test_constraint import random_documents

FEW = [
    dict(size=16, mode="L", quality=10, restart_interval=1, strip="header"),
    dict(size=(40, 24), quality=25, restart_interval=1, strip="tables"),
    dict(size=(40, 24), quality=25, restart_interval=1, trained="RGB"),
    dict(size=24, mode="L", restart_interval=2, trained="L"),
    dict(size=None, restart_interval=0),
]
MANY = [
    dict(size=(17, 23), mode="L", quality=100, restart_interval=0, strip="none"),
    dict(size=48, quality=75, restart_interval=0, strip="header"),
    dict(size=(70, 41), quality=60, subsampling="4:2:2", restart_interval=3, strip="header"),
    dict(size=40, quality=90, subsampling="4:4:4", restart_interval=7, strip="none"),
    dict(size=(8, 200), quality=5, subsampling="4:4:4", restart_interval=0, trained="RGB"),
    dict(size=48, trained="RGB", num_labels=10),
    dict(size=None, trained="RGB", restart_interval=2, strip="none"),
    dict(size=96, mode="L", restart_interval=1, strip="header", trained="L"),
]
OWN_SIZE = (40, 24)


def names(settings):
    return "-".join(str(value) for value in settings.values())


def representation_of(settings):
    settings = dict(settings)
    mode = settings.pop("trained", None)
    tokenizer = codeword_models.path(mode) if mode else "codewords"
    return make("jpeg", tokenizer=tokenizer, **settings)


def rules_of(representation):
    return make_constraint(representation, None if representation.size else OWN_SIZE)


def biases(representation):
    """What models may want, by name, float32 [V]: none knows anything of JPEG."""
    tokens = np.arange(representation.vocab_size)
    pieces = representation.tokenizer.token_letters
    letters = representation.tokenizer.streams.alphabet.letters
    marker = np.array([(letters.kind[piece] == 2).any() for piece in pieces])
    bits = np.array([letters.length[piece].sum() for piece in pieces])
    coefficients = np.array([letters.advance[piece].sum() for piece in pieces])
    return {
        "nothing": 0.0 * tokens,
        "no end": np.where(tokens == representation.eos, -60.0, 0.0),
        "the end at once": np.where(tokens == representation.eos, 60.0, 0.0),
        "markers": 60.0 * marker,
        "long codes": 1.0 * bits,
        "long tokens": 8.0 * np.array([len(piece) for piece in pieces]),
        "full blocks": 0.5 * coefficients + 0.1 * bits,
    }


def check(settings, limits, batch, seed):
    """Samples under every bias and limit; checks that all are valid and end with the end token."""
    representation = representation_of(settings)
    rules = rules_of(representation)
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
            assert not stuck
            assert (sampled == representation.eos).sum(axis=1).tolist() == [1] * batch
            documents = [row[: int(np.argmax(row == representation.eos))] for row in sampled]
            judged = representation.validate_batch(documents)
            errors = {judgement.error for judgement in judged}
            assert errors == {""}, (name, limit, errors)
            if limit > 20 and name == "nothing":
                assert len({document.tobytes() for document in documents}) > batch // 2
            # The letters are those that the bytes are read as.
            letters = representation.tokenizer.letters(documents[0])
            stream = representation.tokenizer.streams.write(letters)
            np.testing.assert_array_equal(representation.tokenizer.streams.read(stream), letters)


@pytest.mark.parametrize("settings", FEW, ids=names)
def test_every_file_is_valid_whatever_is_wanted(settings):
    check(settings, limits=[0, 40], batch=8, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("settings", FEW + MANY, ids=names)
def test_every_file_is_valid_at_many_sizes_and_limits(settings):
    check(settings, limits=[0, 1, 2, 7, 100, 1500], batch=32, seed=1)


@pytest.mark.parametrize("settings", FEW + MANY, ids=names)
def test_machine_and_judgement_agree_on_documents_and_changed_ones(settings):
    representation = representation_of(settings)
    tokenizer, machine = representation.tokenizer, rules_of(representation).machine
    streams = tokenizer.streams
    rng = np.random.default_rng(0)
    documents = []
    for seed in range(4):
        size = OWN_SIZE if representation.size is None else (60, 50)
        whole = representation.encode(synthetic(*size, seed, representation.mode))
        documents += [whole] * 2
        for _ in range(60):
            at = int(rng.integers(0, len(whole)))
            other = int(rng.integers(0, len(whole)))
            changed = [
                np.delete(whole, at),
                np.insert(whole, at, whole[other]),
                np.insert(whole, at, rng.integers(0, representation.vocab_size)),
                np.concatenate([whole[:at], [whole[other]], whole[at + 1 :]]),
                whole[:at],
                np.concatenate([whole[: min(at, other)], whole[max(at, other) :]]),
            ]
            documents.append(changed[int(rng.integers(len(changed)))])
    documents = [d for d in documents if tokenizer.is_content[d].all()]
    state = type(machine.start())(*(np.full(len(documents), value) for value in machine.start()))
    for position in range(max(map(len, documents))):
        there = np.array([position < len(each) for each in documents])
        token = np.array([each[position] if position < len(each) else 0 for each in documents])
        after = machine.step(state, token.astype(np.int32))
        state = type(state)(*(np.where(there, a, b) for a, b in zip(after, state, strict=True)))
    accepted = machine.min_tokens_to_end(state) == 0
    for each, taken in zip(documents, accepted.tolist(), strict=True):
        letters = tokenizer.letters(each)
        canonical = np.array_equal(streams.read(streams.write(letters)), letters)
        assert taken == (representation.validate(each).valid and canonical)
    assert 8 <= accepted.sum() < len(documents) / 2


@pytest.mark.parametrize("settings", FEW + MANY, ids=names)
def test_every_token_leads_where_the_rows_say_and_one_nearer_to_the_end(settings):
    representation = representation_of(settings)
    machine = rules_of(representation).machine
    rng = np.random.default_rng(1)
    tokens = np.arange(representation.vocab_size, dtype=np.int32)
    state = type(machine.start())(*(np.full(24, value) for value in machine.start()))
    turns = rng.integers(0, 150, 24)
    for position in range(5000):
        shortest = machine.min_tokens_to_end(state)
        going = shortest > 0
        if not going.any():
            break
        rows = type(state)(*(field[:, None] for field in state))
        after = machine.min_tokens_after(rows)
        if position % 7 == 0:
            stepped = machine.min_tokens_to_end(machine.step(rows, tokens))
            np.testing.assert_array_equal(after, stepped)
        assert (after[going].min(axis=1) < shortest[going]).all()
        random = np.where(after < UNREACHABLE, rng.random(after.shape), -1).argmax(axis=1)
        token = np.where(position < turns, random, after.argmin(axis=1)).astype(np.int32)
        stepped = machine.step(state, token)
        state = type(state)(*(np.where(going, a, b) for a, b in zip(stepped, state, strict=True)))
    assert not going.any()


def test_the_shortest_documents_are_known():
    # Grey, two blocks: two words each, EOI; then the end.
    bos = [np.array([1])]
    rules = rules_of(
        make(
            "jpeg",
            size=(16, 8),
            mode="L",
            restart_interval=0,
            strip="header",
            tokenizer="codewords",
        )
    )
    assert rules.min_tokens_to_end(rules.start(bos)).tolist() == [2 * 2 + 1 + 1]
    # With a header and a marker after each of 256 MCUs of six blocks.
    rules = rules_of(make("jpeg", tokenizer="codewords"))
    assert rules.min_tokens_to_end(rules.start(bos)).tolist() == [1 + 256 * (6 * 2 + 1) + 1]


@pytest.fixture(scope="module")
def grey():
    """A representation and a model of it with random weights."""
    representation = representation_of(FEW[0] | dict(num_labels=3))
    config = tiny()
    return representation, ModelSpec(model_config(config.model, representation.vocab_size, "cpu"))


def sample(grey, prompts, sizes=None, length=60, **options):
    representation, spec = grey
    mesh = make_mesh(sizes or {}, devices=jax.devices()[: 8 if sizes else 1])
    engine = Engine(
        spec,
        mesh,
        SamplingParams(**options),
        batch_size=8,
        seq_len=length,
        seed=0,
        eos=representation.eos,
        constraint=make_constraint(representation),
    )
    return sorted(engine(spec.init_on(mesh, 3), prompts), key=lambda s: s.number)


@pytest.mark.parametrize("sizes", [None, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_random_weights_give_valid_files_and_keep_their_prompts(grey, sizes):
    representation, _ = grey
    whole = representation.encode(synthetic(16, 16, 5, "L"))
    starts = [representation.bos, representation.label_token(2)]
    beginnings = [whole[:0], representation.prompt(whole, 0.5), whole[:1]]
    prompts = [np.array([start, *beginning]) for start in starts for beginning in beginnings] * 2
    length = len(representation.prompt(whole, 0.5)) + 60
    samples = sample(grey, prompts, sizes, length=length)
    for each in samples:
        given = prompts[each.number][1:]
        assert each.complete
        np.testing.assert_array_equal(each.tokens[: len(given)], given)
        assert representation.validate(each.tokens).error == ""
    assert len({each.tokens.tobytes() for each in samples}) > 8


def test_prompts_that_no_valid_file_begins_with_are_refused(grey):
    representation, _ = grey
    rules = make_constraint(representation)
    whole = representation.encode(synthetic(16, 16, 5, "L"))
    eoi = representation.tokenizer.streams.alphabet.eoi
    for tokens, position, token in [
        ([*whole[:3], eoi], 3, eoi),
        ([7], 0, 7),  # a byte
        ([*whole[:2], representation.eos], 2, representation.eos),
        ([-5], 0, -5),
    ]:
        sentence = f"prompt 1: no valid document has token {token} at position {position}"
        with pytest.raises(ValueError, match=sentence):
            rules.start([np.array([representation.bos]), np.array([representation.bos, *tokens])])


def test_a_size_is_needed_where_images_have_their_own():
    representation = make("jpeg", size=None, tokenizer="codewords")
    with pytest.raises(ValueError, match="--size"):
        make_constraint(representation)
    with pytest.raises(ValueError, match="expected"):
        make_constraint(make("jpeg", size=16, tokenizer="codewords"), (24, 24))
