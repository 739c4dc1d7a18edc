"""cuDNN's attention in its packed layout: every document of a row is a sequence of its own.

The mask is given by the offsets of the documents. (Without them cuDNN, as JAX calls it, attends
across documents.) Needs a GPU of the Hopper generation or newer.

XLA's calls of the library are used directly, not through `jax.nn.dot_product_attention`, for four
reasons. Offsets are made here: JAX's own are wrong for grouped keys before version 0.11.2 (issue
39521). The residuals have names, so that a remat policy can keep them. What is kept of the softmax
is a number per token and head, not per document as well. And the memory that the library works in
is stated, so that compiling ahead of time, without the library, counts it.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jpeglm_jax.hardware import chips
from jpeglm_jax.model.kernels import documents
from jpeglm_jax.model.kernels.documents import Packed
from jpeglm_jax.model.kernels.shape import AttentionShape

# Above it, the work of the backward pass per document is out of proportion.
MAX_DOCUMENTS = 128
# Heads are taken in as many parts as keep the memory that the backward pass works in below it. A
# part copies its heads: one percent of a step's time at the paper's width.
MAX_WORKSPACE = 2 * 2**30
MAX_HEAD_DIM = 128  # of the backward pass


def obstacle(shape: AttentionShape) -> str:
    """Why this kernel cannot take a shape; empty if it can."""
    if chips.compute_capability(shape.device_kind) < 9.0:
        return f"cuDNN's packed attention needs a Hopper GPU or newer, found {shape.device_kind}"
    if shape.dtype not in ("bfloat16", "float16"):
        return f"cuDNN's attention computes in bfloat16, found model.dtype={shape.dtype}"
    if shape.head_dim > MAX_HEAD_DIM or shape.head_dim % 8:
        return (
            f"cuDNN's attention needs heads of a multiple of 8 up to {MAX_HEAD_DIM}, found "
            f"model.head_dim={shape.head_dim}"
        )
    if shape.max_documents > MAX_DOCUMENTS:
        return (
            f"cuDNN's attention needs memory for every document that a row may hold; up to "
            f"{MAX_DOCUMENTS} are allowed, found {shape.max_documents}"
        )
    return ""


def workspace_bytes(rows: int, length: int, heads: int, head_dim: int, max_documents: int) -> int:
    """Memory that cuDNN's backward pass works in.

    For every document that the rows may hold: the queries' gradient in float32, and a number per
    token and head, both for a document as long as a row.

    Args:
      rows, heads: of one device.
      length: sequence length.
      head_dim: size of a head.
      max_documents: documents that a row may hold.
    """
    return rows * max_documents * length * heads * (head_dim + 1) * 4


def attention(
    q_BxSxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    segments_BxS: jax.Array,
    *,
    name: str,
    max_documents: int,
) -> jax.Array:
    """See `jpeglm_jax.model.attention.attention`; for what one device holds.

    If the rows hold more than `max_documents` documents each on average, padding counted as one,
    an entry of the output is NaN: the train step then changes nothing, and nothing wrong is
    learned. Training checks before its first step that packing allows no such row.

    Args:
      name: what is kept for the backward pass is called so for a remat policy.
      max_documents: documents that a row may hold.

    Raises:
      ValueError: more entries than cuDNN's 32-bit offsets can count.
    """
    if q_BxSxHxK.size >= 2**31:
        raise ValueError(
            f"cuDNN counts offsets in 32 bits, too few for queries of {q_BxSxHxK.shape}; take "
            "fewer rows per device, or set another model.attention"
        )
    # Of one document per row cuDNN makes a program without offsets, which attends across documents.
    max_documents = max(2, min(max_documents, segments_BxS.shape[1]))
    return _attention(q_BxSxHxK, k_BxSxGxK, v_BxSxGxK, segments_BxS, name, max_documents)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, segments_BxS, name: str, max_documents: int) -> jax.Array:
    return _forward(q, k, v, segments_BxS, name, max_documents)[0]


def _forward(q, k, v, segments_BxS, name: str, max_documents: int):
    """The output, and what the backward pass needs."""
    packed = documents.pack(segments_BxS, max_documents)
    out, stats_NxHxS = forward(q, k, v, packed)
    # In place: one entry is enough to make the loss NaN.
    first = jnp.where(packed.fits, out[:1, :1, :1, :1], jnp.nan)
    out = jax.lax.dynamic_update_slice(out, first, (0, 0, 0, 0))
    out = checkpoint_name(out, name)
    stats_BxHxS = checkpoint_name(by_token(stats_NxHxS, packed), name)
    return out, (q, k, v, segments_BxS, out, stats_BxHxS)


def _backward(name: str, max_documents: int, residuals, grad_out: jax.Array):
    q, k, v, segments_BxS, out, stats_BxHxS = residuals
    packed = documents.pack(segments_BxS, max_documents)
    stats_NxHxS = by_document(stats_BxHxS, packed)
    parts = num_parts(q.shape, k.shape[2], max_documents)
    by_head = zip(
        *(jnp.split(x, parts, axis=2) for x in (q, k, v, out, grad_out)),
        jnp.split(stats_NxHxS, parts, axis=1),
        strict=True,
    )
    grads = [
        backward(q, k, v, packed, stats_NxHxS, out, grad_out)
        for q, k, v, out, grad_out, stats_NxHxS in by_head
    ]
    return *(jnp.concatenate(parts, axis=2) for parts in zip(*grads, strict=True)), None


def num_parts(queries: tuple[int, ...], groups: int, max_documents: int) -> int:
    """Into how many parts the heads are split for the backward pass; see MAX_WORKSPACE.

    Args:
      queries: shape, [B, S, H, K].
      groups: heads of keys, which a part has whole.
      max_documents: documents that a row may hold.
    """
    rows, length, heads, head_dim = queries
    needed = workspace_bytes(rows, length, heads, head_dim, max_documents)
    enough = (n for n in range(1, groups) if groups % n == 0 and needed <= n * MAX_WORKSPACE)
    return next(enough, groups)


_attention.defvjp(_forward, _backward)


def by_token(stats_NxHxS: jax.Array, packed: Packed) -> jax.Array:
    """Numbers by document, head and position in the document -> by row, head and position.

    float32 [N, H, S] -> [B, H, S].
    """
    batch, length = packed.number_BxS.shape
    at_BxS = jnp.arange(batch * length).reshape(batch, length)
    within_BxS = at_BxS - packed.starts_N[packed.number_BxS]
    return stats_NxHxS[packed.number_BxS, :, within_BxS].swapaxes(1, 2)


def by_document(stats_BxHxS: jax.Array, packed: Packed) -> jax.Array:
    """The inverse of `by_token`; past the end of a document, an arbitrary number: it is not read.

    float32 [B, H, S] -> [N, H, S].
    """
    batch, _, length = stats_BxHxS.shape
    at_NxS = packed.starts_N[:, None] + jnp.arange(length)
    at_NxS = jnp.minimum(at_NxS, batch * length - 1)
    return stats_BxHxS[at_NxS // length, :, at_NxS % length].swapaxes(1, 2)


def _documents(q: jax.Array, k: jax.Array, packed: Packed) -> tuple[jax.Array, ...]:
    """Lengths and offsets of the documents as the library reads them, int32.

    Offsets count entries from the beginning of the array, so keys of fewer heads have their own.
    The program's size, documents of a row, is read from the shapes: [B, max] and [B, max + 1]; the
    library reads the first B * max + 1 offsets.
    """
    batch = q.shape[0]
    lengths = packed.lengths_N.reshape(batch, -1)
    starts = jnp.append(packed.starts_N, jnp.full(batch, batch * q.shape[1], jnp.int32))
    starts = starts.reshape(batch, -1)
    return lengths, lengths, *(starts * x.shape[2] * x.shape[3] for x in (q, k))


def backend_config(
    rows: int, heads: int, length: int, head_dim: int, dtype: str, max_documents: int, grad: bool
) -> str:
    """What XLA reads with a call of the library: a message `CudnnfMHABackendConfig`, as JSON.

    Args:
      rows, heads, length, head_dim: of the queries.
      dtype: of queries, keys and values, by name.
      max_documents: documents that a row may hold.
      grad: of the backward call.
    """
    # Products of [B, S, H, K] and [B, H, S, S] arrays: what is summed over, what is a batch.
    rows_heads, scores = ["0", "2"], ["0", "1"]
    products = {
        "bmm1": ("3", "3", rows_heads, rows_heads),
        "bmm2": ("3", "1", scores, rows_heads),
    }
    if grad:
        products = {
            "bmm1_grad_gemm1": ("2", "1", scores, rows_heads),
            "bmm1_grad_gemm2": ("3", "1", scores, rows_heads),
            "bmm2_grad_gemm1": ("2", "1", scores, rows_heads),
            "bmm2_grad_gemm2": ("3", "3", rows_heads, rows_heads),
        }
    config = {
        "algorithm": {
            "algo_id": "0",
            "math_type": "TENSOR_OP_MATH",
            "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True,
            "workspace_size": "0",
        },
        "fmha_scale": head_dim**-0.5,
        "intermediate_tensor_shape": {
            "element_type": {"bfloat16": "BF16", "float16": "F16"}[dtype],
            "dimensions": [str(n) for n in (rows, heads, length, length)],
            "tuple_shapes": [],
            "layout": {
                "dim_level_types": [],
                "dim_unique": [],
                "dim_ordered": [],
                "minor_to_major": ["3", "2", "1", "0"],
                "tiles": [],
                "element_size_in_bits": "0",
                "memory_space": "0",
                "index_primitive_type": "PRIMITIVE_TYPE_INVALID",
                "pointer_primitive_type": "PRIMITIVE_TYPE_INVALID",
                "dynamic_shape_metadata_prefix_bytes": "0",
            },
            "is_dynamic_dimension": [False] * 4,
        },
        "is_flash_attention": True,
        "mask_type": "PADDING_CAUSAL",
        **{
            f"{name}_dot_dimension_numbers": {
                "lhs_contracting_dimensions": [left],
                "rhs_contracting_dimensions": [right],
                "lhs_batch_dimensions": left_batch,
                "rhs_batch_dimensions": right_batch,
            }
            for name, (left, right, left_batch, right_batch) in products.items()
        },
        "dropout_rate": 0.0,
        "seed": 0,
        "sliding_window_length": 0,
        "max_seg_per_batch": max_documents,
        "is_paged_attention": False,
    }
    return json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": config})


def _call(name: str, q, packed: Packed, arrays, stats: tuple[int, ...], heads, workspace: int):
    """One call of the library: arrays [B, S, heads, K] of `heads` heads each, then statistics.

    The library gives its arrays as [B, heads, S, K], which lie in memory as [B, S, heads, K].
    """
    rows, length, _, head_dim = q.shape
    documents_per_row = packed.lengths_N.size // rows
    shapes = [jax.ShapeDtypeStruct((rows, n, length, head_dim), q.dtype) for n in heads]
    layouts: list[tuple[int, ...]] = [(0, 2, 1, 3)] * len(shapes)
    if stats:
        shapes.append(jax.ShapeDtypeStruct(stats, jnp.float32))
        layouts.append((0, 1, 2))
    config = backend_config(
        rows, q.shape[2], length, head_dim, q.dtype.name, documents_per_row, not stats
    )
    *out, _ = jax.ffi.ffi_call(
        f"__cudnn${name}",
        [*shapes, jax.ShapeDtypeStruct((workspace,), jnp.uint8)],
        output_layouts=[*layouts, (0,)],
        custom_call_api_version=2,
        legacy_backend_config=config,
    )(*arrays)
    return [x.swapaxes(1, 2) if x.ndim == 4 else x for x in out]


def forward(q, k, v, packed: Packed) -> list[jax.Array]:
    """The library's forward call: output [B, S, H, K], softmax statistics float32 [N, H, S]."""
    stats = packed.lengths_N.size, q.shape[2], q.shape[1]
    arrays = q, k, v, *_documents(q, k, packed)
    return _call("fmhaSoftmax", q, packed, arrays, stats, [q.shape[2]], 0)


def backward(q, k, v, packed: Packed, stats_NxHxS, out, grad_out) -> list[jax.Array]:
    """The library's backward call: gradients of q, k and v.

    XLA asks the library for the size of its workspace where it is installed; what is stated here
    counts where it is not.
    """
    rows, length, heads, head_dim = q.shape
    documents_per_row = packed.lengths_N.size // rows
    workspace = workspace_bytes(rows, length, heads, head_dim, documents_per_row)
    arrays = q, k, v, stats_NxHxS, grad_out, out, *_documents(q, k, packed)
    groups = k.shape[2]
    return _call("fmhaSoftmaxBackward", q, packed, arrays, (), [heads, groups, groups], workspace)
