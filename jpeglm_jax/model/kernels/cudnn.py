"""cuDNN's attention in its packed layout: every document of a row is a sequence of its own.

The mask is given by the offsets of the documents. (Without them cuDNN, as JAX calls it, attends
across documents.) Needs a GPU of the Hopper generation or newer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from jpeglm_jax.model.kernels.documents import offsets

MOST_DOCUMENTS = 256  # of a row: a size of the program


def attention(
    q_BxSxHxK: jax.Array, k_BxSxGxK: jax.Array, v_BxSxGxK: jax.Array, segments_BxS: jax.Array
) -> jax.Array:
    """See `jpeglm_jax.model.attention.attention`; for what one device holds.

    A row of more than MOST_DOCUMENTS documents gives NaN: the train step refuses it, and nothing
    wrong is learned.

    Raises:
      ValueError: another type than bfloat16 or float16, no cuDNN, or too old a GPU.
    """
    length, head_dim = q_BxSxHxK.shape[1], q_BxSxHxK.shape[3]
    if q_BxSxHxK.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"cuDNN's attention computes in bfloat16, found {q_BxSxHxK.dtype}; set "
            "model.dtype=bfloat16 or another model.attention"
        )
    lengths, places, fits_B = offsets(segments_BxS, min(MOST_DOCUMENTS, length))
    try:
        out = cudnn.dot_product_attention(
            q_BxSxHxK,
            k_BxSxGxK,
            v_BxSxGxK,
            q_seqlen=lengths,
            kv_seqlen=lengths,
            q_offsets=places,
            kv_offsets=places,
            scale=head_dim**-0.5,
            mask_type=cudnn.MaskType.PADDING_CAUSAL,
        )
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"model.attention is cudnn, which cannot run here: {error}") from error
    return jnp.where(fits_B[:, None, None, None], out, jnp.nan)
