"""Several folders of shards as one set of documents, for training or evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.loading.documents import JoinedDocuments
from data_pipelines.packing.mixture import Mixture
from data_pipelines.packing.plan import EpochPlan, Plan
from data_pipelines.packing.planner import make_plan
from data_pipelines.shards.reader import Shards, read_manifest

# The stages of a mixture, each as (first row, weights); see `packing.mixture.Mixture`.
Schedule = Sequence[tuple[int, Sequence[float]]]


class JoinedShards(JoinedDocuments):
    """One split of several folders of shards, numbered consecutively.

    Attributes:
      parts: `Shards`, one for each folder that has documents in this split.
    """

    parts: tuple[Shards, ...]

    def __init__(self, folders: Sequence[epath.PathLike], split: str, on_damage: str = "stop"):
        """Opens one split of every folder; folders without documents in it are ignored.

        Raises:
          FileNotFoundError, ShardError: see `Shards`.
          ValueError: no folder has documents in this split, or the documents cannot share rows
            because their representations or the names of their labels differ.
        """
        parts = [
            Shards(folder, split, on_damage) for folder in folders if _documents(folder, split)
        ]
        if not parts:
            named = " and ".join(map(str, folders))
            raise ValueError(f"{named}: found no documents in the split {split!r}, expected some")
        super().__init__(parts)
        self._split_name = split
        self._check_label_names()

    @property
    def num_damaged(self) -> int:
        """Number of documents rejected as damaged while reading; see each part's `damaged`."""
        return sum(len(part.damaged) for part in self.parts)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def locate(self, document: int) -> tuple[Shards, int]:
        """The part that has a document, and its number there."""
        part = int(np.searchsorted(self._bounds, document, side="right")) - 1
        return self.parts[part], document - int(self._bounds[part])

    def key(self, document: int) -> str:
        """The source's key of a document's image."""
        part, number = self.locate(document)
        return part.key(number)

    def plan(
        self, *, seq_len: int, mode: str, seed: int, too_long: str, schedule: Schedule = ()
    ) -> Plan:
        """Plans rows of all documents.

        Args:
          seq_len, mode, seed, too_long: see `packing.planner.make_plan`.
          schedule: stages of a mixture, with one weight per folder; () for none: then each epoch
            has every document of every folder once.
        """

        def planned(lengths: np.ndarray) -> EpochPlan:
            try:
                return make_plan(
                    lengths + 1, seq_len=seq_len, mode=mode, seed=seed, too_long=too_long
                )
            except ValueError as error:
                raise ValueError(f"Split {self._split_name!r} has no rows: {error}") from error

        if schedule:
            return Mixture([planned(part.lengths) for part in self.parts], schedule)
        return planned(np.concatenate([part.lengths for part in self.parts]))

    def _check_label_names(self) -> None:
        if not self.representation.num_labels:
            return
        first = self.parts[0]
        for other in self.parts[1:]:
            if other.label_names != first.label_names:
                wrong = sorted(set(first.label_names) ^ set(other.label_names))
                raise ValueError(
                    f"{first.folder} and {other.folder} have labels of different names "
                    f"({', '.join(wrong[:8]) or 'in another order'}), so a label token would be "
                    "ambiguous. Prepare both from sources with the same class names (the same "
                    "subfolders, each with an image), or both with --config.data.conditional=False"
                )


def shard_folders(shards: str) -> list[str]:
    """The folders that `config.data.shards` names, separated by commas; none if it is empty."""
    return [folder.strip() for folder in shards.split(",") if folder.strip()]


def mixture_schedule(mixture_weights: Sequence[Any], batch_size: int) -> Schedule:
    """Converts `data.mixture_weights` of a configuration, by steps, to a schedule by rows.

    Args:
      mixture_weights: weights of the folders, `(3, 1)`, or weights from each step on,
        `((0, (3, 1)), (1000, (1, 1)))`; () for no mixture.
      batch_size: rows of a step.

    Raises ValueError for anything else.
    """
    constant = all(isinstance(weight, int | float) for weight in mixture_weights)
    try:
        stages = [(0, mixture_weights)] if mixture_weights and constant else mixture_weights
        return [
            (int(step) * batch_size, tuple(float(weight) for weight in weights))
            for step, weights in stages
        ]
    except (TypeError, ValueError):
        raise ValueError(
            f"data.mixture_weights is {mixture_weights!r}; expected one weight per folder, as in "
            "(3, 1), or weights from each step on, as in ((0, (3, 1)), (1000, (1, 1)))"
        ) from None


def _documents(folder: epath.PathLike, split: str) -> int:
    return read_manifest(folder)["splits"].get(split, {}).get("documents", 0)
