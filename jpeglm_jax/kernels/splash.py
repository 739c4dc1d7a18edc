"""The TPU kernel: splash attention, which skips the blocks above the diagonal.

`jax.experimental.pallas.ops.tpu.splash_attention`, with segment ids and the fused backward kernel.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from jpeglm_jax import chips, sharding
from jpeglm_jax.chips import SplashBlocks

LANES = 128  # blocks are multiples of it


def _divisor(length: int, at_most: int) -> int:
    """The largest multiple of LANES that divides `length` and is not above `at_most`."""
    fits = [n for n in range(LANES, min(length, at_most) + 1, LANES) if length % n == 0]
    if not fits:
        raise ValueError(
            f"splash attention needs rows (under mesh.sequence: pieces of rows, two a device) of a "
            f"multiple of {LANES} places, found {length}; change row_length or mesh.sequence, or "
            "set model.attention=chunked"
        )
    return fits[-1]


def block_sizes(q_length: int, kv_length: int, most: SplashBlocks) -> splash_attention.BlockSizes:
    """Blocks that divide the rows, as near below `most` as can be."""
    kv, kv_dkv = _divisor(kv_length, most.kv), _divisor(kv_length, most.kv_dkv)
    return splash_attention.BlockSizes(
        block_q=_divisor(q_length, most.q),
        block_kv=kv,
        block_kv_compute=_divisor(kv, most.kv_compute),
        block_q_dkv=_divisor(q_length, most.q_dkv),
        block_kv_dkv=kv_dkv,
        block_kv_dkv_compute=_divisor(kv_dkv, most.kv_dkv_compute),
        use_fused_bwd_kernel=True,
    )


def share_computed(length: int, parts: int, most_q: int, most_kv: int) -> float:
    """Pairs of query and key that the kernel multiplies, over all pairs of a row.

    Blocks on the diagonal are computed in full, so it is above a half. With the row split into
    `parts` it is that of the first, as of any other. For the largest blocks allowed, as in
    `SplashBlocks`.
    """
    piece = length // parts if parts == 1 else length // parts // 2
    block_q, block_kv = _divisor(piece, most_q), _divisor(length, most_kv)
    first, last = range(0, piece, block_q), range(length - piece, length, block_q)
    starts = first if parts == 1 else [*first, *last]
    seen = [-(-(start + block_q) // block_kv) for start in starts]
    return sum(seen) * block_q * block_kv / length**2


def attention(
    q_BxSxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    segments_BxS: jax.Array,
    *,
    name: str,
    interpret: bool = False,
) -> jax.Array:
    """See `jpeglm_jax.attention.attention`.

    Under sequence parallelism each device computes its own queries, two pieces of the row, against
    the keys of the row in their own order.

    Args:
      name: what the output and its log-normaliser are called for a remat policy.
      interpret: run the kernel's program in plain JAX, on any platform.

    Raises:
      ValueError: rows that the kernel's blocks cannot divide.
    """
    length, heads, head_dim = q_BxSxHxK.shape[1:]
    parts, head_parts = sharding.parts("length"), sharding.parts("act_heads")
    known = chips.chip(chips.target()[1])
    piece = length // sharding.pieces()
    blocks = block_sizes(piece, length, known.splash if known else SplashBlocks())
    mask = splash_attention.CausalMask((length, length))
    mask.q_sequence = sharding.balanced(mask.q_sequence, axis=0)
    # Made anew in every trace: its arrays are constants of the program that is being traced.
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * (heads // head_parts)),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name=name,
        interpret=interpret,
    )

    def local(kernel, q, k, v, q_segments, kv_segments):
        k, v, kv_segments = (sharding.row_order(x) for x in (k, v, kv_segments))
        segments = splash_attention.SegmentIds(q_segments, kv_segments)
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        out = jax.vmap(kernel, in_axes=(0, 0, 0, 0))(q * head_dim**-0.5, k, v, segments)
        return out.swapaxes(1, 2)

    return sharding.on_each_device(
        local,
        in_specs=(
            _kernel_specs(kernel) if parts > 1 else PartitionSpec(),
            sharding.spec("batch", "length", "act_heads", None),
            sharding.spec("batch", None, "act_heads", None),
            sharding.spec("batch", None, "act_heads", None),
            sharding.spec("batch", "length"),
            sharding.spec("batch", None),
        ),
        out_specs=sharding.spec("batch", "length", "act_heads", None),
    )(kernel, q_BxSxHxK, k_BxSxGxK, v_BxSxGxK, segments_BxS, segments_BxS)


def _kernel_specs(kernel: Any) -> Any:
    """How the description of the mask is split: by the queries' place, like the queries."""
    mesh = jax.sharding.get_abstract_mesh()
    return kernel.manual_sharding_spec(
        jax.sharding.NamedSharding(mesh, sharding.spec(None, "length"))
    )
