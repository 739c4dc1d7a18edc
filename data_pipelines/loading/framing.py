"""Writes documents into the rows of a batch: inputs, targets, and what is known of them.

Framing adds a start token to the inputs and an end token to the targets, so a document of n tokens
takes n + 1 positions.
"""

from __future__ import annotations

import numpy as np

Batch = dict[str, np.ndarray]


def empty_batch(rows: int, seq_len: int) -> Batch:
    """Makes a batch of padding; each array has shape [rows, seq_len].

    tokens: int32, inputs: start token and tokens of each document.
    targets: int32, tokens of each document and the end token.
    segments: int32, 1, 2, ... for the pieces of a row, 0 for padding.
    positions: int32, 0, 1, ... from the start of each piece; 0 for padding.
    weights: float32, 1 for a target, 0 for padding.
    codec_bytes: float32, bytes that the codec writes for the document, in equal parts over its
      tokens as targets; 0 for end tokens and padding.
    """
    shape = (rows, seq_len)
    batch: Batch = {
        name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments", "positions")
    }
    batch |= {name: np.zeros(shape, np.float32) for name in ("weights", "codec_bytes")}
    return batch


def write_piece(
    batch: Batch,
    row: int,
    offset: int,
    segment: int,
    document: np.ndarray,
    codec_bytes: int,
    start_token: int,
    eos: int,
    start: int,
    length: int,
) -> None:
    """Writes a piece of a framed document into a row, in place.

    The framed document has one position more than tokens: its inputs are the start token and the
    tokens, its targets the tokens and `eos`. No target belongs to another document.

    Args:
      batch: see `empty_batch`.
      row, offset: where the piece starts in the batch.
      segment: number of the piece in its row, from 1.
      document: tokens of the whole document, [n].
      codec_bytes: bytes that the codec writes for the whole document.
      start_token: first input of the document.
      eos: last target of the document.
      start, length: the piece, in positions of the framed document (0 to n + 1).
    """
    end = offset + length
    stop = start + length
    tokens, targets = batch["tokens"][row, offset:end], batch["targets"][row, offset:end]
    if start:
        tokens[:] = document[start - 1 : stop - 1]
    else:
        tokens[0] = start_token
        tokens[1:] = document[: length - 1]
    if stop > document.size:
        targets[:-1] = document[start:]
        targets[-1] = eos
    else:
        targets[:] = document[start:stop]
    batch["segments"][row, offset:end] = segment
    batch["positions"][row, offset:end] = np.arange(length)
    batch["weights"][row, offset:end] = 1.0
    batch["codec_bytes"][row, offset:end] = codec_bytes / max(document.size, 1)
    if stop > document.size:
        batch["codec_bytes"][row, end - 1] = 0.0
