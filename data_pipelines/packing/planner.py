"""Makes the global plan of rows: which documents, or parts of them, each row contains.

A plan depends on the lengths of all documents only, not on hosts, batches or devices: row i is a
pure function of the lengths, the options and i, and is computed on demand. The position in the data
is therefore one integer. `loading.loader` turns planned rows into batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from data_pipelines.packing.concat import ConcatPlan
from data_pipelines.packing.pack import PackPlan
from data_pipelines.packing.plan import EpochPlan

MODES = ("pack", "concat")
TOO_LONG = ("drop", "cut")


def make_plan(
    lengths: ArrayLike,
    *,
    seq_len: int,
    mode: str = "pack",
    seed: int = 0,
    too_long: str = "drop",
) -> EpochPlan:
    """Plans the rows of all epochs.

    Args:
      lengths: integers [N], positions that each document takes: its number of tokens plus 1.
      seq_len: positions of a row.
      mode: "pack" puts whole documents into rows with little padding, shuffled again each epoch.
        "concat" concatenates them in a new order each epoch and splits every `seq_len` positions;
        the last row of an epoch is padded (Han et al., arXiv 2408.08459, concatenate in this way
        and do not describe the end of an epoch).
      seed: 0 <= seed < 2**63, of all orders.
      too_long: rule of "pack" for documents longer than a row: "drop" drops them, "cut" truncates
        them, without an end token. "concat" ignores it.

    Returns:
      The plan. It takes 8 bytes per document ("concat": 4) and is the same on every platform.

    Raises:
      ValueError: an option is out of range, a length is below 1, or there are no documents.
    """
    _check_options(seq_len, mode, seed, too_long)
    lengths = _checked_lengths(lengths)
    if mode == "concat":
        return ConcatPlan(lengths, seq_len, seed)
    return PackPlan(lengths, seq_len, seed, too_long)


def _check_options(seq_len: int, mode: str, seed: int, too_long: str) -> None:
    if mode not in MODES:
        raise ValueError(f"The packing mode is {mode!r}; expected one of {', '.join(MODES)}.")
    if too_long not in TOO_LONG:
        raise ValueError(
            f"The rule for documents that are too long is {too_long!r}; expected one of "
            f"{', '.join(TOO_LONG)}."
        )
    if seq_len < 1:
        raise ValueError(f"seq_len is {seq_len}; expected at least 1.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"The seed is {seed}; expected 0 to 2**63 - 1.")


def _checked_lengths(lengths: ArrayLike) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
        raise ValueError(
            f"Lengths are {lengths.dtype} of shape {lengths.shape}; expected integers [N]."
        )
    if not lengths.size:
        raise ValueError("There are no documents to plan rows for.")
    if lengths.min() < 1 or lengths.max() >= 2**32:
        raise ValueError(
            f"Lengths are between {lengths.min()} and {lengths.max()}; expected 1 to 2**32 - 1. A "
            "document of n tokens takes n + 1 positions."
        )
    if lengths.size >= 2**32:
        raise ValueError(f"There are {lengths.size:,} documents; expected fewer than 2**32.")
    return lengths.astype(np.uint32)
