"""From documents and a plan to batches: a pure function of the step.

Batch t is rows t * batch_size and on of the plan, whatever reads it. Each process reads only the
rows that its devices hold. The position in the data is one integer, the step.
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
from data_pipelines.loading.placement import place, rows_of_process
from data_pipelines.packing.base import LABELS, EpochPlan, Plan, Rows
from data_pipelines.packing.permutation import uniform
from data_pipelines.representations.base import Representation

# One read takes about this many documents: fewer waste the time of the call, many more memory.
_DOCUMENTS_PER_READ = 256
_LONGEST_WINDOW = 64

# Training has no last step: so many windows that none is reached.
_ENDLESS = 2**40


class Loader:
    """Batches of the rows of a plan.

    A batch is a dict of arrays [rows, seq_len]: tokens, targets, segments and positions
    (int32), weights (float32). `framing.empty_batch` says what they hold. A document starts with
    the token of its label, if the representation has such tokens and the document a label;
    otherwise with the start of an unlabelled document. Padding is the token 0.

    Attributes:
      documents: the sets of documents, a tuple.
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
        """Joins documents and their plan.

        Args:
          documents: one set, or several, which are then numbered one after the other.
          plan: made for the lengths of these documents, plus 1 each.
          batch_size: rows of a global batch.
          seed: decides which labels are dropped; 0 <= seed < 2**63.
          label_dropout: the part of documents, 0 to 1, that begin as if they had no label.
          threads: Grain's, in each process that reads.
          workers: Grain's worker processes; 0 reads in this one. Each holds a copy of the plan.
            They need absl's flags to be parsed, as `absl.app.run` does.
          read_ahead: how many windows (batches, or several of them if they are small) each
            process keeps ready.

        Raises:
          ValueError: the plan is not for these documents, the documents do not fit together, or
            an option is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"A batch must have at least 1 row, not {batch_size}.")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout must be from 0 to 1, not {label_dropout}.")
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
        """16 hex digits over all that decides what batch t holds."""
        identity = [
            self.plan.fingerprint,
            [part.data_hash for part in self.documents],
            self.representation.fingerprint,
            [self.batch_size, self.seed, self.label_dropout],
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def num_eval_batches(self) -> int:
        """Batches of one pass; the same for every process."""
        return math.ceil(self._epoch_plan.rows_per_epoch / self.batch_size)

    def batches(
        self,
        start_step: int = 0,
        *,
        sharding: jax.sharding.Sharding | None = None,
        rows: ArrayLike | None = None,
    ) -> Batches:
        """All batches from a step on, without end.

        Args:
          start_step: number of the first batch; what a checkpoint keeps.
          sharding: of [batch_size, seq_len]. With one, batches are global `jax.Array`s, and
            this process reads the rows that its devices hold.
          rows: without a sharding, the rows of each batch that are read (numpy arrays); default
            all.
        """
        return Batches(self, start_step, None, sharding, rows)

    def eval_batches(
        self, *, sharding: jax.sharding.Sharding | None = None, rows: ArrayLike | None = None
    ) -> Batches:
        """One pass over the first epoch of the plan: every document once, then the end.

        All batches have the same shape. The last is filled up with rows of weight 0. Every
        process gets `num_eval_batches`, though all of its rows in the last may be empty.

        Raises:
          TypeError: the plan is a mixture, which has no end.
        """
        return Batches(self, 0, self.num_eval_batches, sharding, rows)

    def read_rows(self, indices: ArrayLike, last_row: int | None = None) -> Batch:
        """Rows of the plan by number, in the order asked for; from `last_row` on they are empty."""
        numbers = np.asarray(indices, np.int64)
        batch = empty_batch(len(numbers), self.plan.seq_len)
        planned = np.arange(len(numbers))
        if last_row is not None:
            planned = np.flatnonzero(numbers < last_row)
        rows = self.plan.rows(numbers[planned])
        # A document that was split may be in several of these rows: it is read once.
        documents, which = np.unique(rows.pieces[:, 0], return_inverse=True)
        tokens = self._joined.read(documents)
        which = which.reshape(-1)
        starts = self._joined.start_tokens(documents)[which]
        starts = self._with_labels_dropped(starts, numbers[planned], rows)
        eos = self.representation.eos
        piece = 0
        for row, pieces in zip(planned.tolist(), rows, strict=True):
            at = 0
            for segment, (_, start, length) in enumerate(pieces.tolist(), 1):
                document = tokens[which[piece]]
                if document is not None:
                    write_piece(
                        batch, row, at, segment, document, starts[piece], eos, start, length
                    )
                at += length
                piece += 1
        return batch

    @property
    def _epoch_plan(self) -> EpochPlan:
        if not isinstance(self.plan, EpochPlan):
            raise TypeError("A mixture has no end: evaluate each of its sources by itself.")
        return self.plan

    def _with_labels_dropped(
        self, start_tokens: np.ndarray, numbers: np.ndarray, rows: Rows
    ) -> np.ndarray:
        """Start tokens by piece; which give up their label depends on row and place in it alone."""
        if not self.label_dropout:
            return start_tokens
        row = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
        place_in_row = np.arange(row.size) - rows.offsets[row]
        chance = uniform(self.seed, LABELS, numbers[row], place_in_row)
        return np.where(chance < self.label_dropout, self.representation.bos, start_tokens)


class Batches(Iterator[dict[str, Any]]):
    """Batches in order. `step` is the number of the next one: all there is to save.

    Use it as a context manager, or call `close`, to end Grain's threads and processes early.
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
            raise ValueError(f"Steps are numbered from 0; {start_step} was asked for.")
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
                    "Grain's worker processes read absl's flags, which are not parsed yet: start "
                    "by absl.app.run, or call absl.flags.FLAGS.mark_as_parsed() first."
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
        return place(batch, self._sharding, self.rows, self._batch_size)

    def close(self) -> None:
        """Ends reading ahead."""
        self._windows.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Windows:
    """Random access to windows, each the rows of a few consecutive batches: a source for Grain.

    Single reads of records are slow, so that small batches are read several at once.
    """

    def __init__(self, loader: Loader, rows: np.ndarray, start_step: int, num_steps: int | None):
        self._loader = loader
        self._rows = rows
        self._start_step = start_step
        self._num_steps = num_steps
        first_row = start_step * loader.batch_size
        sample = loader.plan.rows(first_row + np.arange(min(64, loader.batch_size)))
        documents_per_batch = max(len(sample.pieces) * len(rows) // len(sample), 1)
        self.steps = min(max(_DOCUMENTS_PER_READ // documents_per_batch, 1), _LONGEST_WINDOW)

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
