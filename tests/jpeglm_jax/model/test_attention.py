"""Every attention implementation compared with the plain one on packed rows of documents."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeglm_jax.model.attention import IMPLEMENTATIONS, attention, choose, document_mask
from jpeglm_jax.model.kernels import documents
from jpeglm_jax.model.kernels.shape import AttentionShape
from jpeglm_jax.parallel import sharding
from tests.jpeglm_jax.gpu import A100, H100

LENGTH, HEADS, HEAD_DIM = 256, 4, 32
# The implementations that can run on a CPU. For cuDNN see test_cudnn.py.
CPU = {
    "splash": functools.partial(attention, implementation="splash", interpret=True),
    "triton": functools.partial(attention, implementation="triton", interpret=True),
    "chunked": functools.partial(attention, implementation="chunked"),
}


def packed(groups=HEADS, rows=2, dtype=jnp.float32):
    """Queries, keys, values and segments of rows of several documents, the last padding."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (rows, LENGTH, HEADS, HEAD_DIM), (rows, LENGTH, groups, HEAD_DIM)
    q, k, v = (
        jax.random.normal(key, shape[i > 0], dtype) for i, key in zip(range(3), keys, strict=True)
    )
    lengths = [[100, 1, 120, 35], [3, 200, 13, 40]][:rows]
    segments = np.stack([np.repeat([1, 2, 3, 0], n) for n in lengths]).astype(np.int32)
    return q, k, v, jnp.asarray(segments)


def by_hand(q, k, v, segments):
    """Attention in NumPy, one document at a time: the definition."""
    q, k, v, segments = (np.asarray(x, np.float64) for x in (q, k, v, segments))
    out = np.zeros_like(q)
    for row in range(len(q)):
        for document in np.unique(segments[row]):
            at = segments[row] == document
            for head in range(q.shape[2]):
                group = head * k.shape[2] // q.shape[2]
                scores = q[row, at, head] @ k[row, at, group].T / np.sqrt(q.shape[3])
                scores = np.where(np.tri(at.sum(), dtype=bool), scores, -np.inf)
                probs = np.exp(scores - scores.max(1, keepdims=True))
                out[row, at, head] = probs / probs.sum(1, keepdims=True) @ v[row, at, group]
    return out


def outputs_and_gradients(function, q, k, v, segments):
    """Outputs of an implementation and gradients of q, k and v; padding has no part in the loss."""
    used = jnp.where(segments > 0, 1.0, 0.0)[:, :, None, None]
    direction = jax.random.normal(jax.random.key(1), q.shape)

    def loss(q, k, v):
        out = function(q, k, v, segments)
        return jnp.sum(out.astype(jnp.float32) * direction * used), out * used

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


@pytest.mark.parametrize("groups", [HEADS, 2, 1])
def test_the_plain_implementation_equals_the_definition(groups):
    q, k, v, segments = packed(groups)
    np.testing.assert_allclose(
        attention(q, k, v, segments), by_hand(q, k, v, segments), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("name", CPU)
def test_a_kernel_and_its_gradients_equal_the_plain_implementation(name, groups):
    arrays = packed(groups)
    expected = outputs_and_gradients(attention, *arrays)
    for a, b in zip(outputs_and_gradients(CPU[name], *arrays), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["xla", *CPU])
def test_a_document_does_not_attend_to_another(name):
    implementation = CPU.get(name, attention)
    q, k, v, segments = packed(rows=1)
    others = (segments != 2)[..., None, None]
    noise = [jnp.where(others, 7.0 - 3.0 * x, x) for x in (q, k, v)]
    before, after = (implementation(*x, segments) for x in ((q, k, v), noise))
    at = np.asarray(segments == 2)
    np.testing.assert_array_equal(np.asarray(before)[at], np.asarray(after)[at])
    assert not np.allclose(np.asarray(before)[~at], np.asarray(after)[~at])


@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 2, "tensor": 4}, {"fsdp": 2, "tensor": 2, "sequence": 2}],
    ids=["tensor", "sequence"],
)
@pytest.mark.parametrize("name", CPU)
def test_a_kernel_on_a_mesh_equals_that_on_one_device(name, sizes):
    arrays = packed(groups=4)
    expected = outputs_and_gradients(attention, *arrays)
    mesh = sharding.make_mesh(sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        got = outputs_and_gradients(CPU[name], *arrays)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_document_starts_give_the_document_mask():
    segments = packed()[3]
    positions = np.arange(LENGTH)
    starts = np.asarray(documents.starts(segments))
    np.testing.assert_array_equal(
        (starts[:, :, None] <= positions) & (positions <= positions[:, None]),
        document_mask(segments),
    )


def shape(kind, length=12_288, head_dim=128, dtype="bfloat16", max_documents=16):
    return AttentionShape(length, head_dim, dtype, max_documents, kind)


@pytest.mark.parametrize(
    ("platform", "asked", "name"),
    [
        ("tpu", shape("TPU v5"), "splash"),
        ("tpu", shape("TPU v5", length=120), "xla"),
        ("gpu", shape(H100), "cudnn"),
        ("gpu", shape("NVIDIA H200"), "cudnn"),
        ("gpu", shape(H100, length=208), "cudnn"),
        ("gpu", shape(H100, max_documents=500), "triton"),
        ("gpu", shape(H100, dtype="float32"), "triton"),
        ("gpu", shape(H100, length=120, dtype="float32"), "xla"),
        ("gpu", shape(H100, length=12_300, dtype="float32"), "chunked"),
        ("gpu", shape(A100), "triton"),
        ("gpu", shape(A100, length=120), "xla"),
        ("gpu", shape("a GPU of tomorrow"), "triton"),
        ("cpu", shape("cpu", length=12_300), "xla"),
    ],
)
def test_auto_is_the_first_kernel_that_can_take_the_shape(platform, asked, name):
    assert choose("auto", platform, asked) == name


@pytest.mark.parametrize(
    ("name", "asked", "found"),
    [
        ("splash", shape("TPU v5", length=200), "128, found 200"),
        ("triton", shape(A100, length=200), "64 .*, found 200"),
        ("cudnn", shape(A100), f"Hopper GPU or newer, found {A100}"),
        ("cudnn", shape(H100, dtype="float32"), "found model.dtype=float32"),
        ("cudnn", shape(H100, head_dim=256), "found model.head_dim=256"),
        ("cudnn", shape(H100, max_documents=500), "found 500"),
    ],
)
def test_a_kernel_that_cannot_take_the_shape_is_rejected_by_name(name, asked, found):
    with pytest.raises(ValueError, match=found):
        choose(name, IMPLEMENTATIONS[name][0], asked)


def test_without_the_pallas_kernel_auto_takes_the_plain_implementation(monkeypatch):
    from jpeglm_jax.model.kernels import triton

    monkeypatch.setattr(triton, "MODULE", "jax.experimental.pallas.ops.removed.attention")
    assert choose("auto", "gpu", shape(A100)) == "chunked"
    with pytest.raises(ValueError, match="removed"):
        choose("triton", "gpu", shape(A100))


@pytest.mark.skipif(importlib.util.find_spec("tokamax") is not None, reason="tokamax is here")
def test_without_tokamax_the_message_names_the_extra():
    with pytest.raises(ValueError, match=r"jpeglm_jax\[tokamax\]"):
        choose("tokamax", "gpu", shape(H100))


@pytest.mark.skipif(importlib.util.find_spec("tokamax") is None, reason="needs tokamax")
@pytest.mark.parametrize("groups", [HEADS, 2])
def test_tokamax_and_its_gradients_equal_the_plain_implementation(groups):
    """The mask, the residuals and the rule, around tokamax's plain implementation."""
    from jpeglm_jax.model.kernels import tokamax

    assert choose("tokamax", "gpu", shape(H100)) == "tokamax"
    arrays = packed(groups)
    implementation = functools.partial(tokamax.attention, name="attention", plain=True)
    expected = outputs_and_gradients(attention, *arrays)
    for a, b in zip(outputs_and_gradients(implementation, *arrays), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "name", [n for n, runs_on in IMPLEMENTATIONS.items() if "cpu" not in runs_on]
)
def test_a_kernel_for_another_platform_is_rejected(name):
    with pytest.raises(
        ValueError, match=f"is {name}, a kernel for .* on cpu there are xla, chunked"
    ):
        attention(*packed(), implementation=name)


def test_unknown_names_and_odd_groups_are_rejected():
    q, k, v, segments = packed()
    with pytest.raises(ValueError, match="'flash'; expected auto or one of splash"):
        attention(q, k, v, segments, implementation="flash")
    with pytest.raises(ValueError, match="3 key-value heads do not divide 4 heads"):
        attention(q, k[:, :, :3], v[:, :, :3], segments)
    short = [x[:, :200] for x in (q, k, v, segments)]
    for name, multiple in (("splash", 128), ("triton", 64)):
        with pytest.raises(ValueError, match=f"a multiple of {multiple}.*, found 200"):
            CPU[name](*short)
