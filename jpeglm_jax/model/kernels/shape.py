"""The shape of an attention, by which a kernel can or cannot compute it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """One attention, as a device computes it.

    Attributes:
      length: sequence length, positions of a row.
      head_dim: size of a head.
      dtype: of queries, keys and values, by name.
      max_documents: documents that a row may hold, padding counted as one.
      device_kind: of the device, as it calls itself.
    """

    length: int
    head_dim: int
    dtype: str
    max_documents: int
    device_kind: str
