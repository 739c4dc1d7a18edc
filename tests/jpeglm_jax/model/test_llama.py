"""The model computes the logits of `transformers`' Llama; documents of a row are independent."""

import dataclasses
import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeglm_jax.hardware import chips
from jpeglm_jax.model.config import REMAT_POLICIES, ModelConfig
from jpeglm_jax.model.ops import normal, rope_tables, rotate, up_projection
from jpeglm_jax.model.spec import ModelSpec

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "llama"
TINY = ModelConfig(
    vocab_size=50, layers=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn=48, qk_norm=True
)


def load_weights_module():
    spec = importlib.util.spec_from_file_location("llama_weights", GOLDEN / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def params_like_transformers(case, weight):
    """The golden weights in the shapes of our model."""
    layers, width, size = case["num_hidden_layers"], case["hidden_size"], case["head_dim"]
    heads, groups = case["num_attention_heads"], case["num_key_value_heads"]
    ffn, vocab = case["intermediate_size"], case["vocab_size"]

    def each(name, shape):
        return np.stack([weight(f"model.layers.{n}.{name}.weight", shape) for n in range(layers)])

    def into(name, outputs, *split):
        return each(name, (outputs, width)).swapaxes(1, 2).reshape(layers, width, *split)

    params = {
        "embed": weight("model.embed_tokens.weight", (vocab, width)),
        "norm": {"scale": weight("model.norm.weight", (width,))},
        "blocks": {
            "attention_norm": {"scale": each("input_layernorm", (width,))},
            "ffn_norm": {"scale": each("post_attention_layernorm", (width,))},
            "attention": {
                "q": into("self_attn.q_proj", heads * size, heads, size),
                "k": into("self_attn.k_proj", groups * size, groups, size),
                "v": into("self_attn.v_proj", groups * size, groups, size),
                "o": each("self_attn.o_proj", (width, heads * size))
                .swapaxes(1, 2)
                .reshape(layers, heads, size, width),
            },
            "ffn": {
                "gate": into("mlp.gate_proj", ffn, ffn),
                "up": into("mlp.up_proj", ffn, ffn),
                "down": each("mlp.down_proj", (width, ffn)).swapaxes(1, 2),
            },
        },
    }
    if not case["tie_word_embeddings"]:
        params["head"] = weight("lm_head.weight", (vocab, width)).T
    return params


@functools.cache
def forward(config):
    spec = ModelSpec(config)
    return jax.jit(lambda params, *rows: nnx.merge(spec.graph, params)(*rows))


def apply(config, params, tokens, segments=None, positions=None):
    segments = np.ones_like(tokens) if segments is None else segments
    if positions is None:
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    with jax.default_matmul_precision("highest"):
        return np.asarray(forward(config)(params, tokens, segments, positions))


@functools.cache
def initial(config):
    return jax.jit(ModelSpec(config).init)(0)


@pytest.mark.parametrize("name", ["plain", "grouped", "tied"])
def test_logits_equal_those_of_transformers(name):
    golden = load_weights_module()
    case = golden.CASES[name]
    config = ModelConfig(
        vocab_size=case["vocab_size"],
        layers=case["num_hidden_layers"],
        width=case["hidden_size"],
        heads=case["num_attention_heads"],
        kv_heads=case["num_key_value_heads"],
        head_dim=case["head_dim"],
        ffn=case["intermediate_size"],
        norm_eps=case["rms_norm_eps"],
        tied=case["tie_word_embeddings"],
    )
    ours = apply(config, params_like_transformers(case, golden.draw), golden.TOKENS)
    theirs = np.load(GOLDEN / "logits.npz")[name]
    assert theirs.std() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def packed_row():
    """Three documents of 5, 9 and 4 tokens and 6 positions of padding."""
    lengths = [5, 9, 4]
    segments = np.repeat([1, 2, 3, 0], [*lengths, 6])[None]
    positions = np.concatenate([*map(np.arange, lengths), np.zeros(6, int)])[None]
    tokens = np.random.RandomState(0).randint(0, 50, (1, 24))
    return tokens, segments, positions


def test_a_packed_document_has_the_logits_of_the_document_alone():
    params = initial(TINY)
    tokens, segments, positions = packed_row()
    packed = apply(TINY, params, tokens, segments, positions)
    for segment in (1, 2, 3):
        inside = segments[0] == segment
        alone = apply(TINY, params, tokens[:, inside])
        np.testing.assert_allclose(packed[:, inside], alone, atol=2e-5)


def test_a_token_changes_no_logits_of_other_documents_or_earlier_positions():
    params = initial(TINY)
    tokens, segments, positions = packed_row()
    before = apply(TINY, params, tokens, segments, positions)
    tokens[0, 7] += 1  # the third token of the second document
    after = apply(TINY, params, tokens, segments, positions)
    moved = np.any(before != after, axis=-1)[0]
    assert moved.tolist() == [7 <= position < 14 for position in range(24)]


@functools.cache
def loss_and_gradients(policy):
    graph = ModelSpec(dataclasses.replace(TINY, remat=policy)).graph
    row = packed_row()

    def loss(params):
        return jnp.sum(jnp.sin(nnx.merge(graph, params)(*row)))

    return jax.jit(jax.value_and_grad(loss))(initial(TINY))


@pytest.mark.parametrize("policy", [name for name in REMAT_POLICIES if name != "none"])
def test_remat_changes_neither_loss_nor_gradients(policy):
    plain = loss_and_gradients("none")
    remat = loss_and_gradients(policy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, remat)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradients_of_the_up_projection_are_those_of_a_product(dtype):
    random = np.random.default_rng(0)
    x, w, g = (
        jnp.asarray(random.normal(size=shape), dtype) for shape in ((2, 5, 4), (4, 6), (2, 5, 6))
    )
    out, backward = jax.vjp(up_projection, x, w)
    expected, expected_backward = jax.vjp(lambda x, w: x @ w, x, w)
    np.testing.assert_array_equal(out, expected)
    tolerance = 1e-6 if dtype == "float32" else 1e-2
    for ours, theirs in zip(backward(g), expected_backward(g), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            ours.astype("float32"), theirs.astype("float32"), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # each swaps the halves differently
def test_the_gradient_of_a_rotation_is_the_rotation_back(platform, dtype, monkeypatch):
    monkeypatch.setattr(chips, "target", lambda: (platform, "a chip"))
    random = np.random.default_rng(0)
    x, g = (jnp.asarray(random.normal(size=(2, 5, 3, 8)), dtype) for _ in range(2))
    positions = random.integers(0, 1000, (2, 5))
    angle = positions[:, :, None, None] * 1e4 ** (-np.arange(4) / 4)

    def rotated(x, angle):
        pairs = np.asarray(x, np.complex128)
        pairs = (pairs[..., :4] + 1j * pairs[..., 4:]) * np.exp(1j * angle)
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    tables = rope_tables(jnp.asarray(positions), 8, 1e4)
    out, backward = jax.vjp(lambda x: rotate(x, tables), x)
    assert out.dtype == backward(g)[0].dtype == dtype
    tolerance = 2e-4 if dtype == "float32" else 2e-2  # of angles up to a thousand, in float32
    for ours, expected in ((out, rotated(x, angle)), (backward(g)[0], rotated(g, -angle))):
        np.testing.assert_allclose(np.asarray(ours, np.float64), expected, atol=tolerance)


def test_initial_weights_are_normal():
    samples = np.asarray(normal(jax.random.key(0), (1000, 1000)), np.float64)
    moments = [np.mean(samples**power) for power in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.02)
    assert np.abs(samples).max() < 4.4


def test_a_bfloat16_model_keeps_float32_weights_and_logits():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    params = initial(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tokens, segments, positions = packed_row()
    low = apply(config, params, tokens, segments, positions)
    assert low.dtype == np.float32
    high = apply(TINY, params, tokens, segments, positions)
    assert 0 < np.abs(low - high).max() < 0.2


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"remat": "ful"}, "model.remat is 'ful'"),
        ({"kv_heads": 3}, "model.kv_heads = 3"),
        ({"head_dim": 7}, "model.head_dim is 7"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(change, found):
    with pytest.raises(ValueError, match=found):
        dataclasses.replace(TINY, **change)
