"""Several folders of shards as one set of documents: what a run trains on, or is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.loading.documents import JoinedDocuments
from data_pipelines.packing import plan as packing
from data_pipelines.packing.base import Plan
from data_pipelines.packing.mixture import Mixture
from data_pipelines.shards.reader import Shards, read_manifest

# (first row, weights) of each stage of a mixture.
Stages = Sequence[tuple[int, Sequence[float]]]


class JoinedShards(JoinedDocuments):
    """One split of folders of shards, numbered one after the other.

    Attributes:
      parts: `Shards`, one for each folder that has documents in this split.
    """

    parts: tuple[Shards, ...]

    def __init__(self, folders: Sequence[epath.PathLike], split: str, on_damage: str = "stop"):
        """Opens one split of every folder; a folder that held nothing out has no part in it.

        Raises:
          FileNotFoundError, ShardError: see `Shards`.
          ValueError: no folder has documents in this split, or what the folders hold cannot share
            rows: another representation, or labels of other names.
        """
        parts = [
            Shards(folder, split, on_damage) for folder in folders if _documents(folder, split)
        ]
        if not parts:
            named = " and ".join(map(str, folders))
            raise ValueError(f"{named}: no documents in the split {split!r}")
        super().__init__(parts)
        self._check_label_names()

    @property
    def num_damaged(self) -> int:
        """How many documents were set aside while reading; each part's `damaged` names them."""
        return sum(len(part.damaged) for part in self.parts)

    def key(self, document: int) -> str:
        """The source's key of a document's image."""
        part = int(np.searchsorted(self._bounds, document, side="right")) - 1
        return self.parts[part].key(document - int(self._bounds[part]))

    def plan(
        self, *, seq_len: int, mode: str, seed: int, too_long: str, stages: Stages = ()
    ) -> Plan:
        """The plan of rows of all documents.

        Args:
          seq_len, mode, seed, too_long: see `packing.plan`.
          stages: (first row, weights) of each stage of a mixture, one weight a folder; without
            them every document of every folder comes once an epoch.
        """

        def planned(lengths: np.ndarray) -> packing.EpochPlan:
            return packing.plan(
                lengths + 1, seq_len=seq_len, mode=mode, seed=seed, too_long=too_long
            )

        if stages:
            return Mixture([planned(part.lengths) for part in self.parts], stages)
        return planned(np.concatenate([part.lengths for part in self.parts]))

    def _check_label_names(self) -> None:
        if not self.representation.num_labels:
            return
        first = self.parts[0]
        for other in self.parts[1:]:
            if other.label_names != first.label_names:
                wrong = sorted(set(first.label_names) ^ set(other.label_names))
                raise ValueError(
                    f"{first.folder} and {other.folder} have labels of other names "
                    f"({', '.join(wrong[:8]) or 'in another order'}), so the same token would "
                    "mean two things. Prepare both from folders of the same classes, or without "
                    "labels (data.conditional=False)"
                )


def stages(weights: Sequence[Any], batch_size: int) -> Stages:
    """The stages of a mixture in rows, from weights as a configuration states them.

    Args:
      weights: shares of the folders, `(3, 1)`, or the shares from each step on,
        `((0, (3, 1)), (1000, (1, 1)))`; () for no mixture.
      batch_size: rows of a step.

    Raises ValueError for anything else.
    """
    numbers = all(isinstance(weight, int | float) for weight in weights)
    try:
        pairs = [(0, weights)] if weights and numbers else weights
        return [
            (int(step) * batch_size, tuple(float(weight) for weight in shares))
            for step, shares in pairs
        ]
    except (TypeError, ValueError):
        raise ValueError(
            f"data.mixture_weights is {weights!r}; expected the shares of the folders, as in (3, 1), or "
            "the shares from each step on, as in ((0, (3, 1)), (1000, (1, 1)))"
        ) from None


def _documents(folder: epath.PathLike, split: str) -> int:
    return read_manifest(folder)["splits"].get(split, {}).get("documents", 0)
