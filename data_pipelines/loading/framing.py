"""Documents as rows of a batch: start and end tokens, segments, positions, weights."""

from __future__ import annotations

import numpy as np

Batch = dict[str, np.ndarray]


def empty_batch(rows: int, seq_len: int) -> Batch:
    """Rows of padding, each array [rows, seq_len].

    tokens: int32, the inputs: start token and tokens of each document.
    targets: int32, what is to be predicted: tokens of each document and the end token.
    segments: int32, 1, 2, ... for the pieces of a row, 0 for padding.
    positions: int32, 0, 1, ... from the beginning of each piece; 0 for padding.
    weights: float32, 1 for a target, 0 for padding.
    """
    shape = (rows, seq_len)
    batch: Batch = {
        name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments", "positions")
    }
    batch["weights"] = np.zeros(shape, np.float32)
    return batch


def write_piece(
    batch: Batch,
    row: int,
    at: int,
    segment: int,
    document: np.ndarray,
    start_token: int,
    eos: int,
    start: int,
    length: int,
) -> None:
    """Writes a part of a framed document into a row, from place `at` on.

    The framed document has one place more than tokens: its inputs are the start token and the
    tokens, its targets the tokens and `eos`. So they are shifted inside the document, and no
    target belongs to another one. Places `start` to `start + length` of it are written.
    """
    end = at + length
    stop = start + length
    tokens, targets = batch["tokens"][row, at:end], batch["targets"][row, at:end]
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
    batch["segments"][row, at:end] = segment
    batch["positions"][row, at:end] = np.arange(length)
    batch["weights"][row, at:end] = 1.0
