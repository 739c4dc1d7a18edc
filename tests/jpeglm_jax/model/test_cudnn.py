"""cuDNN's attention with the library's two calls computed in plain JAX, from memory as it lies.

The stand-in reads queries, keys and values by the offsets it is given, as entries from the
beginning of the memory: wrong offsets, strides or orders of operands give wrong numbers.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from jpeglm_jax.model.attention import attention
from jpeglm_jax.model.kernels import cudnn, documents
from tests.jpeglm_jax.model.test_attention import HEADS, LENGTH, outputs_and_gradients, packed

NOT_WRITTEN = -777.0  # what the library leaves where it writes nothing


def library(target, results, *, output_layouts, custom_call_api_version, legacy_backend_config):
    """`jax.ffi.ffi_call` of the two calls of the library."""
    config = json.loads(legacy_backend_config)["cudnn_fmha_backend_config"]
    scale, max_documents = config["fmha_scale"], config["max_seg_per_batch"]
    assert config["mask_type"] == "PADDING_CAUSAL" and custom_call_api_version == 2
    assert output_layouts[0] == (0, 2, 1, 3), "the heads of a token lie together in memory"

    def call(*operands):
        q, k, v, *rest, lengths, kv_lengths, q_offsets, kv_offsets = operands
        rows, length, heads, size = q.shape
        count = rows * max_documents
        assert lengths.shape == kv_lengths.shape == (rows, max_documents)
        assert q_offsets.shape == kv_offsets.shape == (rows, max_documents + 1)
        lengths = lengths.reshape(-1)
        inside = jnp.arange(length) < lengths[:, None]  # [N, S]

        def where(offsets, number):
            """Entries of each document, [N, S, heads, K], in an array of so many heads."""
            offsets = offsets.reshape(-1)[:count, None, None, None]
            token = jnp.arange(length)[:, None, None] * number * size
            return offsets + token + jnp.arange(number)[:, None] * size + jnp.arange(size)

        def read(x, offsets):
            return x.reshape(-1)[where(offsets, x.shape[2]) % x.size].astype(jnp.float32)

        def write(x_NxSxHxK, offsets, number):
            at = jnp.where(inside[..., None, None], where(offsets, number), rows * length * 10**6)
            out = jnp.full(rows * length * number * size, NOT_WRITTEN, q.dtype)
            out = out.at[at].set(x_NxSxHxK.astype(q.dtype), mode="drop")
            return out.reshape(rows, length, number, size).swapaxes(1, 2)

        groups = k.shape[2]
        queries, keys, values = read(q, q_offsets), read(k, kv_offsets), read(v, kv_offsets)
        keys, values = (jnp.repeat(x, heads // groups, axis=2) for x in (keys, values))
        scores = jnp.einsum("nshk,nthk->nhst", queries, keys) * scale
        sees = jnp.tri(length, dtype=bool) & inside[:, None, None] & inside[:, None, :, None]
        scores = jnp.where(sees, scores, -1e30)
        if target == "__cudnn$fmhaSoftmax":
            normaliser = jax.nn.logsumexp(scores, axis=-1)
            probs = jnp.exp(scores - normaliser[..., None])
            out = write(jnp.einsum("nhst,nthk->nshk", probs, values), q_offsets, heads)
            stats = jnp.where(inside[:, None], normaliser, NOT_WRITTEN)
            return out, stats, jnp.zeros(results[-1].shape, jnp.uint8)
        assert target == "__cudnn$fmhaSoftmaxBackward"
        stats, grad_out, out = rest
        grad_out, out = read(grad_out, q_offsets), read(out, q_offsets)
        probs = jnp.where(sees, jnp.exp(scores - stats[..., None]), 0.0)
        delta = jnp.einsum("nshk,nshk->nhs", grad_out, out)
        grad_scores = probs * (jnp.einsum("nshk,nthk->nhst", grad_out, values) - delta[..., None])
        grad_q = jnp.einsum("nhst,nthk->nshk", grad_scores, keys) * scale
        grad_k = jnp.einsum("nhst,nshk->nthk", grad_scores, queries) * scale
        grad_v = jnp.einsum("nhst,nshk->nthk", probs, grad_out)

        def by_group(x):
            return x.reshape(count, length, groups, heads // groups, size).sum(3)

        return (
            write(grad_q, q_offsets, heads),
            write(by_group(grad_k), kv_offsets, groups),
            write(by_group(grad_v), kv_offsets, groups),
            jnp.zeros(0, jnp.uint8),
        )

    return call


IMPLEMENTATION = functools.partial(cudnn.attention, name="attention", max_documents=5)


@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(jax.ffi, "ffi_call", library)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("groups", [HEADS, 2, 1])
def test_outputs_and_gradients_equal_the_plain_implementation(groups, rows, on_a_cpu):
    """Two rows of several documents, and keys of fewer heads: where offsets used to be wrong."""
    arrays = packed(groups, rows, jnp.bfloat16)
    expected = outputs_and_gradients(attention, *arrays)
    for a, b in zip(outputs_and_gradients(IMPLEMENTATION, *arrays), expected, strict=True):
        largest = np.abs(np.asarray(b, np.float32)).max()
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), atol=0.02 * largest
        )


def test_heads_in_parts_give_the_same(on_a_cpu, monkeypatch):
    arrays = packed(2, 2, jnp.bfloat16)
    whole = outputs_and_gradients(IMPLEMENTATION, *arrays)
    monkeypatch.setattr(cudnn, "MAX_WORKSPACE", 1)
    assert cudnn.num_parts(arrays[0].shape, 2, 5) == 2
    for a, b in zip(outputs_and_gradients(IMPLEMENTATION, *arrays), whole, strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def test_more_documents_than_allowed_give_a_loss_that_is_not_finite(on_a_cpu):
    q, k, v, segments = packed(HEADS, 2, jnp.bfloat16)  # four documents in a row, padding too
    for allowed, finite in ((4, True), (3, False)):
        out = cudnn.attention(q, k, v, segments, name="attention", max_documents=allowed)
        assert np.isfinite(np.asarray(out, np.float32).sum()) == finite


def test_offsets_run_on_from_row_to_row():
    segments = jnp.asarray([[1, 1, 2, 2, 2], [1, 1, 2, 0, 0]])
    packed = documents.pack(segments, 4)
    np.testing.assert_array_equal(packed.lengths_N, [2, 3, 2, 1, 2, 0, 0, 0])
    np.testing.assert_array_equal(packed.starts_N, [0, 2, 5, 7, 8, 10, 10, 10])
    np.testing.assert_array_equal(packed.number_BxS, [[0, 0, 1, 1, 1], [2, 2, 3, 4, 4]])
    assert packed.fits and documents.pack(segments, 3).fits
    assert not documents.pack(segments, 2).fits
    # As JAX makes them of offsets by row in the form that its documentation gives: starts, then -1.
    lengths = jnp.asarray([[2, 3, -1, -1], [2, 1, 2, -1]])
    by_row = jnp.asarray([[0, 2, -1, -1, -1], [0, 2, 3, -1, -1]])
    q = jnp.zeros((2, 5, 3, 8))
    theirs = fused_attention_stablehlo._fix_seqlen_offsets(lengths, lengths, by_row, by_row, q, q)
    np.testing.assert_array_equal(theirs[0].reshape(-1), packed.lengths_N)
    np.testing.assert_array_equal(theirs[2].reshape(-1)[:8], packed.starts_N * 3 * 8)


@pytest.mark.parametrize("grad", [False, True])
def test_the_call_is_described_as_jax_describes_it(grad):
    """Field by field, of JAX's own call for the same shapes."""
    rows, heads, size, most = 2, 4, 64, 5
    names = {False: "__cudnn$fmhaSoftmax", True: "__cudnn$fmhaSoftmaxBackward"}
    array = jax.ShapeDtypeStruct((rows, LENGTH, heads, size), jnp.bfloat16)
    none = jax.ShapeDtypeStruct((0,), jnp.bfloat16)
    lengths = jax.ShapeDtypeStruct((rows, most), jnp.int32)
    offsets = jax.ShapeDtypeStruct((rows, most + 1), jnp.int32)
    stats = jax.ShapeDtypeStruct((rows * most, heads, LENGTH), jnp.float32)
    operands = [array, array, array, none, lengths, lengths, offsets, offsets, none, none]
    options = dict(
        scale=size**-0.5,
        seed=0,
        dropout_rate=0.0,
        variadic_args=(False, False),
        mask_type=fused_attention_stablehlo.MaskType.PADDING_CAUSAL,
        layout=fused_attention_stablehlo.AttentionLayout.BTNH.value,
        sliding_window_length=None,
    )
    if grad:
        operands += [stats, array, array]
        primitive = fused_attention_stablehlo._dot_product_attention_bwd_p
    else:
        options["is_training"] = True
        primitive = fused_attention_stablehlo._dot_product_attention_fwd_p

    def theirs(*arrays):
        return primitive.bind(*arrays, **options)

    segments = jnp.ones((rows, LENGTH), jnp.int32)

    def ours(q, k, v, out, grad_out, stats):
        packed = documents.pack(segments, most)
        if grad:
            return cudnn.backward(q, k, v, packed, stats, out, grad_out)
        return cudnn.forward(q, k, v, packed)

    def call(function, *arrays):
        """Config, types of operands and results, layouts of the call in the lowered text."""
        text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
        (line,) = (x for x in text.splitlines() if f"@{names[grad]}(" in x)
        config = re.search(r'backend_config = "((?:[^"\\]|\\.)*)"', line).group(1)
        layouts = re.search(r"operand_layouts = .*", line).group(0)
        layouts = re.sub(r"tensor<\d+xui8>", "WORKSPACE", layouts)
        version = re.search(r"api_version = \d+", line)
        return json.loads(config.replace("\\22", '"')), layouts, version and version.group(0)

    found, expected = call(ours, *[array] * 5, stats), call(theirs, *operands)
    assert found == expected


def test_the_workspace_is_that_of_the_documents():
    per_document = cudnn.workspace_bytes(1, 12_288, 32, 128, 1)
    assert per_document == 193.5 * 2**20
    assert cudnn.num_parts((1, 12_288, 32, 128), 32, 8) == 1
    assert cudnn.num_parts((1, 12_288, 32, 128), 32, 16) == 2
    assert cudnn.num_parts((2, 12_288, 32, 128), 8, 16) == 4
    assert cudnn.num_parts((64, 12_288, 32, 128), 8, 16) == 8, "no part has a part of a group"


def test_more_entries_than_offsets_can_count_are_rejected():
    q = jax.ShapeDtypeStruct((64, 12_288, 32, 128), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((64, 12_288), jnp.int32)
    with pytest.raises(ValueError, match="32 bits, too few for queries of"):
        jax.eval_shape(IMPLEMENTATION, q, q, q, segments)
