"""Batches of documents as images: a tokenizer trains on the raw pixels that shards hold.

The shards are those of a representation that loses nothing: the tokens of a document are the bytes
of its pixels in raster order, channels last. The loader's rows hold one document each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from data_pipelines.representations.base import Representation
from data_pipelines.representations.vq.config import TokenizerConfig
from jpeglm_jax.parallel.sharding import Batch


def seq_len(representation: Representation) -> int:
    """Positions of a row that holds one image: its bytes, and the start or the end token.

    Raises ValueError for a representation whose documents are not the bytes of pixels.
    """
    size, channels = representation.fixed_size, 3 if representation.mode == "RGB" else 1
    if size is None or representation.num_dimensions != size[0] * size[1] * channels:
        raise ValueError(
            f"a tokenizer trains on the bytes of pixels, found the representation "
            f"{representation.name!r}; expected pixel with clusters=0"
        )
    if size[0] != size[1]:
        raise ValueError(
            f"a tokenizer trains on square images, found size {size[0]} x {size[1]}; set "
            "representation.size to one side"
        )
    return representation.num_dimensions + 1


def pixels(batch: Batch, config: TokenizerConfig) -> tuple[jax.Array, jax.Array]:
    """(uint8 [B, size, size, C], float32 [B]: 0 for rows without an image) of a batch."""
    shape = (-1, config.size, config.size, config.channels)
    return batch["targets"][:, :-1].astype(jnp.uint8).reshape(shape), batch["weights"][:, 0]
