"""The global plan of rows: which documents, or parts of them, each row of an epoch holds.

A plan is made from the lengths of all documents alone. It knows nothing of hosts, batches or
devices: row i of the endless run of epochs is a pure function of the lengths, the options and i,
and is computed when asked for. So a position in the data is one integer.

Lengths are counted in places of a row. A document of n tokens takes n + 1, because it is framed
by a start token (in the inputs) and an end token (in the targets).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from data_pipelines.packing.base import EpochPlan
from data_pipelines.packing.concat import ConcatPlan
from data_pipelines.packing.pack import PackPlan

MODES = ("pack", "concat")
TOO_LONG = ("drop", "cut")


def plan(
    lengths: ArrayLike,
    *,
    seq_len: int,
    mode: str = "pack",
    seed: int = 0,
    too_long: str = "drop",
) -> EpochPlan:
    """Plans the rows of all epochs.

    Args:
      lengths: integers [N], places of each document: its tokens and one more.
      seq_len: places of a row.
      mode: "pack" puts whole documents into rows, few places left empty, anew each epoch.
        "concat" lays them end to end, in an order of its own each epoch, and cuts every
        `seq_len` places; the last row of an epoch is padded (Han et al., arXiv 2408.08459,
        concatenate so, but do not say what they do at the end).
      seed: 0 <= seed < 2**63; decides every order.
      too_long: what "pack" does with documents longer than a row: "drop" leaves them out, "cut"
        keeps what fits, which then has no end token. "concat" needs no such rule.

    Returns:
      The plan. It takes 8 bytes a document ("concat": 4), and is the same on every platform.

    Raises:
      ValueError: options out of range, a length below 1, or nothing to plan.
    """
    _check_options(seq_len, mode, seed, too_long)
    lengths = _checked_lengths(lengths)
    if mode == "concat":
        return ConcatPlan(lengths, seq_len, seed)
    return PackPlan(lengths, seq_len, seed, too_long)


def _check_options(seq_len: int, mode: str, seed: int, too_long: str) -> None:
    if mode not in MODES:
        raise ValueError(f"Packing mode {mode!r} is not known; choose one of {', '.join(MODES)}.")
    if too_long not in TOO_LONG:
        raise ValueError(
            f"The rule {too_long!r} for documents that are too long is not known; choose one of "
            f"{', '.join(TOO_LONG)}."
        )
    if seq_len < 1:
        raise ValueError(f"A row must have at least 1 place, not {seq_len}.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"The seed must be at least 0 and below 2**63, not {seed}.")


def _checked_lengths(lengths: ArrayLike) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
        raise ValueError(
            f"Lengths must be integers [N], not {lengths.dtype} of shape {lengths.shape}."
        )
    if not lengths.size:
        raise ValueError("There are no documents to plan rows for.")
    if lengths.min() < 1 or lengths.max() >= 2**32:
        raise ValueError(
            f"Lengths must be between 1 and 2**32 - 1 places, but they go from {lengths.min()} to "
            f"{lengths.max()}. A document of n tokens takes n + 1."
        )
    if lengths.size >= 2**32:
        raise ValueError(f"{lengths.size:,} documents are more than a plan can number (2**32).")
    return lengths.astype(np.uint32)
