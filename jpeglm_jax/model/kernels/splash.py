"""The TPU kernel: splash attention, which skips the blocks above the diagonal.

`jax.experimental.pallas.ops.tpu.splash_attention`, with segment ids and the fused backward kernel.
"""

from __future__ import annotations

import jax
from jax.experimental.pallas.ops.tpu import splash_attention

from jpeglm_jax.hardware import chips
from jpeglm_jax.hardware.chips import SplashBlocks
from jpeglm_jax.model.kernels.shape import AttentionShape

LANES = 128  # blocks are multiples of it


def obstacle(shape: AttentionShape) -> str:
    """Why this kernel cannot take a shape; empty if it can."""
    if shape.length % LANES:
        return (
            f"splash attention needs a sequence length that is a multiple of {LANES}, found "
            f"{shape.length}"
        )
    return ""


def _divisor(length: int, at_most: int) -> int:
    """The largest multiple of LANES that divides `length` and is not above `at_most`."""
    return max(n for n in range(LANES, min(length, at_most) + 1, LANES) if length % n == 0)


def block_sizes(length: int, maximum: SplashBlocks) -> splash_attention.BlockSizes:
    """Blocks that divide the rows, as near below `maximum` as can be."""
    kv, kv_dkv = _divisor(length, maximum.kv), _divisor(length, maximum.kv_dkv)
    return splash_attention.BlockSizes(
        block_q=_divisor(length, maximum.q),
        block_kv=kv,
        block_kv_compute=_divisor(kv, maximum.kv_compute),
        block_q_dkv=_divisor(length, maximum.q_dkv),
        block_kv_dkv=kv_dkv,
        block_kv_dkv_compute=_divisor(kv_dkv, maximum.kv_dkv_compute),
        use_fused_bwd_kernel=True,
    )


def share_computed(length: int, max_q: int, max_kv: int) -> float:
    """Pairs of query and key that the kernel multiplies, over all pairs of a row.

    Blocks on the diagonal are computed in full, so it is above a half.

    Args:
      length: sequence length.
      max_q, max_kv: the largest blocks allowed, see `SplashBlocks`.
    """
    block_q, block_kv = _divisor(length, max_q), _divisor(length, max_kv)
    seen = [-(-end // block_kv) for end in range(block_q, length + 1, block_q)]
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
    """See `jpeglm_jax.model.attention.attention`; for what one device holds.

    Args:
      name: what the output and its log-normaliser are called for a remat policy.
      interpret: run the kernel's program in plain JAX, on any platform.

    """
    length, heads, head_dim = q_BxSxHxK.shape[1:]
    known = chips.chip(chips.target()[1])
    # Made again in every trace: its arrays are constants of the program that is being traced.
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads),
        block_sizes=block_sizes(length, known.splash if known else SplashBlocks()),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=name,
        interpret=interpret,
    )
    segments = splash_attention.SegmentIds(segments_BxS, segments_BxS)
    q, k, v = (x.swapaxes(1, 2) for x in (q_BxSxHxK, k_BxSxGxK, v_BxSxGxK))
    return jax.vmap(kernel)(q * head_dim**-0.5, k, v, segments).swapaxes(1, 2)
