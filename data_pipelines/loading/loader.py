"""Loads batches from documents and a plan; a batch is a pure function of the step.

Batch t has the rows from t * batch_size on of the plan, for any number of processes. Each process
reads only the rows of its own devices. The position in the data is one integer, the step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import grain
import jax
import numpy as np
from absl import flags
from numpy.typing import ArrayLike

from data_pipelines.loading.documents import Documents, JoinedDocuments
from data_pipelines.loading.framing import Batch, empty_batch, write_piece
from data_pipelines.loading.placement import rows_of_process, to_global_arrays
from data_pipelines.packing.permutation import uniform
from data_pipelines.packing.plan import LABELS, EpochPlan, Plan, Rows
from data_pipelines.representations.base import Representation

# Number of documents per read: fewer waste time on calls, many more waste memory.
_DOCUMENTS_PER_READ = 256
_MAX_WINDOW = 64  # batches

# Number of windows of training, which has no last step.
_ENDLESS = 2**40


class Loader:
    """Makes batches from the rows of a plan.

    A batch is a dict of arrays [rows, seq_len]: tokens, targets, segments and positions (int32),
    weights (float32); see `framing.empty_batch`. A document starts with the token of its label, or
    with BOS if it has no label or the representation has no label tokens. Padding is the token 0.

    Attributes:
      documents: tuple of the sets of documents.
      plan, batch_size, seed, label_dropout: as given.
    """

    def __init__(
        self,
        documents: Documents | Sequence[Documents],
        plan: Plan,
        *,
        batch_size: int,
        seed: int = 0,
        label_dropout: float = 0.0,
        threads: int = 1,
        workers: int = 0,
        read_ahead: int = 2,
    ):
        """Makes a loader.

        Args:
          documents: one set, or several, which are numbered consecutively.
          plan: made for the lengths of these documents plus 1 each.
          batch_size: rows of a global batch.
          seed: of label dropout; 0 <= seed < 2**63.
          label_dropout: fraction of documents, 0 to 1, that start with BOS instead of their label.
          threads: Grain's reading threads per process.
          workers: Grain's worker processes; 0 reads in this process. Each has a copy of the plan.
            They need parsed absl flags, as after `absl.app.run`.
          read_ahead: windows (a batch, or several small ones) that each process prefetches.

        Raises:
          ValueError: the plan is for other documents, the documents cannot share rows, or an
            option is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout is {label_dropout}; expected 0 to 1.")
        parts = documents if isinstance(documents, Sequence) else (documents,)
        self.documents = tuple(parts)
        self._joined = JoinedDocuments(parts)
        self._joined.require_planned_by(plan)
        self.plan = plan
        self.batch_size = batch_size
        self.seed = seed
        self.label_dropout = label_dropout
        self.read_options = grain.ReadOptions(threads, max(read_ahead, threads) if threads else 0)
        self.worker_options = grain.MultiprocessingOptions(workers, read_ahead)

    @property
    def representation(self) -> Representation:
        return self._joined.representation

    @property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of everything that affects the contents of a batch."""
        identity = [
            self.plan.fingerprint,
            [part.data_hash for part in self.documents],
            self.representation.fingerprint,
            [self.batch_size, self.seed, self.label_dropout],
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def num_eval_batches(self) -> int:
        """Number of batches of one pass, the same for every process."""
        return math.ceil(self._epoch_plan.rows_per_epoch / self.batch_size)

    def batches(
        self,
        start_step: int = 0,
        *,
        sharding: jax.sharding.Sharding | None = None,
        rows: ArrayLike | None = None,
    ) -> Batches:
        """An endless iterator over batches from a step on.

        Args:
          start_step: step of the first batch, as stored in a checkpoint.
          sharding: of [batch_size, seq_len]. With a sharding, batches are global `jax.Array`s and
            this process reads the rows of its own devices.
          rows: without a sharding, the rows of each batch to read, as numpy arrays; default all.
        """
        return Batches(self, start_step, None, sharding, rows)

    def eval_batches(
        self, *, sharding: jax.sharding.Sharding | None = None, rows: ArrayLike | None = None
    ) -> Batches:
        """An iterator over the first epoch of the plan, with every document once.

        All batches have the same shape; the last is padded with rows of weight 0. Every process
        gets `num_eval_batches` batches, even if all of its rows in the last are padding.

        Raises:
          TypeError: the plan is a mixture, which has no epochs.
        """
        return Batches(self, 0, self.num_eval_batches, sharding, rows)

    def read_rows(self, indices: ArrayLike, last_row: int | None = None) -> Batch:
        """Reads rows of the plan in the given order; rows from `last_row` on are padding."""
        numbers = np.asarray(indices, np.int64)
        batch = empty_batch(len(numbers), self.plan.seq_len)
        planned = np.arange(len(numbers))
        if last_row is not None:
            planned = np.flatnonzero(numbers < last_row)
        rows = self.plan.rows(numbers[planned])
        # A split document may be in several of these rows: it is read once.
        documents, which = np.unique(rows.pieces[:, 0], return_inverse=True)
        tokens = self._joined.read(documents)
        which = which.reshape(-1)
        sizes = self._joined.codec_bytes(documents)[which].tolist()
        starts = self._joined.start_tokens(documents)[which]
        starts = self._with_labels_dropped(starts, numbers[planned], rows)
        eos = self.representation.eos
        piece = 0
        for row, pieces in zip(planned.tolist(), rows, strict=True):
            offset = 0
            for segment, (_, start, length) in enumerate(pieces.tolist(), 1):
                document = tokens[which[piece]]
                if document is not None:
                    size, start_token = sizes[piece], starts[piece]
                    write_piece(
                        batch, row, offset, segment, document, size, start_token, eos, start, length
                    )
                offset += length
                piece += 1
        return batch

    @property
    def _epoch_plan(self) -> EpochPlan:
        if not isinstance(self.plan, EpochPlan):
            raise TypeError("A mixture has no epochs: evaluate each of its sources separately.")
        return self.plan

    def _with_labels_dropped(
        self, start_tokens: np.ndarray, numbers: np.ndarray, rows: Rows
    ) -> np.ndarray:
        """Start tokens by piece; dropout depends on the row and the index in the row only."""
        if not self.label_dropout:
            return start_tokens
        row = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
        index_in_row = np.arange(row.size) - rows.offsets[row]
        chance = uniform(self.seed, LABELS, numbers[row], index_in_row)
        return np.where(chance < self.label_dropout, self.representation.bos, start_tokens)


class Batches(Iterator[dict[str, Any]]):
    """An iterator over batches. `step` is the step of the next batch, its only state.

    Use it as a context manager, or call `close`, to stop Grain's threads and processes.
    """

    def __init__(
        self,
        loader: Loader,
        start_step: int,
        num_steps: int | None,
        sharding: jax.sharding.Sharding | None,
        rows: ArrayLike | None,
    ):
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}; expected 0 or more.")
        shape = (loader.batch_size, loader.plan.seq_len)
        if sharding is not None:
            rows = rows_of_process(sharding, shape)
        elif rows is None:
            rows = np.arange(loader.batch_size)
        self.step = start_step
        self.rows = np.asarray(rows, np.int64)
        self._batch_size = loader.batch_size
        self._sharding = sharding
        self._num_steps = num_steps
        windows = _Windows(loader, self.rows, start_step, num_steps)
        dataset = grain.MapDataset.source(windows).to_iter_dataset(loader.read_options)
        if loader.worker_options.num_workers:
            if not flags.FLAGS.is_parsed():
                raise RuntimeError(
                    "Grain's worker processes need parsed absl flags: start with absl.app.run, or "
                    "call absl.flags.FLAGS.mark_as_parsed() first."
                )
            dataset = dataset.mp_prefetch(loader.worker_options)
        self._windows = iter(dataset)
        self._steps_per_window = windows.steps
        self._window: Batch = {}
        self._left = 0

    def __next__(self) -> dict[str, Any]:
        if self._num_steps is not None and self.step >= self._num_steps:
            self.close()
            raise StopIteration
        if not self._left:
            self._window = next(self._windows)
            self._left = self._steps_per_window
        first = (self._steps_per_window - self._left) * len(self.rows)
        batch = {name: part[first : first + len(self.rows)] for name, part in self._window.items()}
        self._left -= 1
        self.step += 1
        if self._sharding is None:
            return batch
        return to_global_arrays(batch, self._sharding, self.rows, self._batch_size)

    def close(self) -> None:
        """Stops prefetching."""
        self._windows.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Windows:
    """A Grain source of windows, each with the rows of a few consecutive batches.

    Single reads of records are slow, so several small batches are read at once.
    """

    def __init__(self, loader: Loader, rows: np.ndarray, start_step: int, num_steps: int | None):
        self._loader = loader
        self._rows = rows
        self._start_step = start_step
        self._num_steps = num_steps
        first_row = start_step * loader.batch_size
        sample = loader.plan.rows(first_row + np.arange(min(64, loader.batch_size)))
        documents_per_batch = max(len(sample.pieces) * len(rows) // len(sample), 1)
        self.steps = min(max(_DOCUMENTS_PER_READ // documents_per_batch, 1), _MAX_WINDOW)

    def __len__(self) -> int:
        if self._num_steps is None:
            return _ENDLESS
        return math.ceil((self._num_steps - self._start_step) / self.steps)

    def __getitem__(self, window: int) -> Batch:
        """Arrays [steps * rows, seq_len], batch after batch."""
        first = self._start_step + window * self.steps
        steps = np.arange(first, first + self.steps)
        indices = (steps[:, None] * self._loader.batch_size + self._rows).reshape(-1)
        last_row = None if self._num_steps is None else self._loader._epoch_plan.rows_per_epoch
        return self._loader.read_rows(indices, last_row)
