"""From documents and a plan to batches: a pure function of the step.

Batch t is rows t * batch_size and on of the plan, whatever reads it. Each process reads only the
rows that its devices hold. The position in the data is one integer, the step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import grain
import jax
import numpy as np
from absl import flags
from numpy.typing import ArrayLike

from data_pipelines.packing import EpochPlan, Plan, Rows
from data_pipelines.permutation import uniform
from data_pipelines.placement import place, rows_of_process
from data_pipelines.representations.base import Representation

Batch = dict[str, np.ndarray]

# One read takes about this many documents: fewer waste the time of the call, many more memory.
_DOCUMENTS_PER_READ = 256
_LONGEST_WINDOW = 64

# Training has no last step: so many windows that none is reached.
_ENDLESS = 2**40

_LABEL_DROPOUT = 4  # this stream of random numbers; packing has 1 to 3

_log = logging.getLogger(__name__)


class Documents(Protocol):
    """What the loader needs of a set of documents; `shards.Shards` is one."""

    @property
    def representation(self) -> Representation: ...

    @property
    def data_hash(self) -> str:
        """Of all tokens, in order."""
        ...

    lengths: np.ndarray
    labels: np.ndarray

    def read(self, documents: Sequence[int]) -> list[np.ndarray]: ...


class Loader:
    """Batches of the rows of a plan.

    A batch is a dict of arrays [rows, row_length]:
      tokens: int32, the inputs: start token and tokens of each document.
      targets: int32, what is to be predicted: tokens of each document and the end token.
      segments: int32, 1, 2, ... for the pieces of a row, 0 for padding.
      positions: int32, 0, 1, ... from the beginning of each piece; 0 for padding.
      weights: float32, 1 for a target, 0 for padding.

    Inputs and targets are shifted inside the document. The start token is the label's, if the
    representation has label tokens and the document a label; otherwise the start of an unlabelled
    document. Padding is the token 0.
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
        self.documents = documents if isinstance(documents, Sequence) else (documents,)
        self.plan = plan
        self.batch_size = batch_size
        self.seed = seed
        self.label_dropout = label_dropout
        self.read_options = grain.ReadOptions(threads, max(read_ahead, threads) if threads else 0)
        self.worker_options = grain.MultiprocessingOptions(workers, read_ahead)
        self._check()
        self._first_document = np.cumsum([0] + [len(part.lengths) for part in self.documents])
        self._label_tokens, self._labels = self._labels_and_their_tokens()

    @property
    def representation(self) -> Representation:
        return self.documents[0].representation

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
          sharding: of [batch_size, row_length]. With one, batches are global `jax.Array`s, and
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
        indices = np.asarray(indices, np.int64)
        real = indices if last_row is None else indices[indices < last_row]
        pieces = self.plan.rows(real)
        batch = _empty(len(indices), self.plan.row_length)
        places = np.arange(len(indices)) if last_row is None else np.flatnonzero(indices < last_row)
        self._fill(batch, places, real, pieces)
        return batch

    @property
    def _epoch_plan(self) -> EpochPlan:
        if not isinstance(self.plan, EpochPlan):
            raise TypeError("A mixture has no end: evaluate each of its sources by itself.")
        return self.plan

    def _fill(self, batch: Batch, places: np.ndarray, numbers: np.ndarray, rows: Rows) -> None:
        documents, which = np.unique(rows.pieces[:, 0], return_inverse=True)
        tokens = self._read(documents)
        counts = np.diff(rows.offsets)
        row = np.repeat(np.arange(len(rows)), counts)
        piece = np.arange(len(row)) - rows.offsets[row]
        starts = self._start_tokens(rows.pieces[:, 0])
        if self.label_dropout:
            dropped = uniform(self.seed, _LABEL_DROPOUT, numbers[row], piece) < self.label_dropout
            starts = np.where(dropped, self.representation.bos, starts)
        write = _Writer(batch, self.representation.eos)
        columns = (places[row], which.reshape(-1), starts, piece, *rows.pieces[:, 1:].T)
        at = 0
        for into, document, start_token, k, start, length in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            at = 0 if k == 0 else at
            if (read := tokens[document]) is not None:
                write(into, at, k + 1, read, start_token, start, length)
            at += length

    def _read(self, documents: np.ndarray) -> list[np.ndarray | None]:
        """Tokens of documents, given by ascending numbers over all sets.

        A document that comes back empty though it is not was set aside as damaged, which
        `Documents` counts: None, and its places stay padding.
        """
        bounds = np.searchsorted(documents, self._first_document)
        tokens: list[np.ndarray | None] = []
        for part, first, begin, end in zip(
            self.documents, self._first_document[:-1], bounds[:-1], bounds[1:], strict=True
        ):
            numbers = documents[begin:end] - first
            found = part.read(numbers.tolist()) if numbers.size else []
            for number, read, expected in zip(numbers, found, part.lengths[numbers], strict=True):
                if read.size not in (0, expected):
                    raise ValueError(
                        f"Document {number} has {read.size:,} tokens, but its stored length, "
                        f"from which rows were planned, is {expected:,}. Prepare the shards again."
                    )
                tokens.append(read if read.size == expected else None)
        return tokens

    def _labels_and_their_tokens(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Start tokens by label, the last for label -1; labels of all documents, if they count."""
        representation = self.representation
        tokens = [representation.label_token(k) for k in range(representation.num_labels)]
        labels = [part.labels for part in self.documents]
        if not tokens:
            return np.array([representation.bos]), None
        joined = labels[0] if len(labels) == 1 else np.concatenate(labels)
        return np.array([*tokens, representation.bos]), joined

    def _start_tokens(self, documents: np.ndarray) -> np.ndarray:
        if self._labels is None:
            return np.full(documents.shape, self.representation.bos)
        return self._label_tokens[self._labels[documents]]

    def _check(self) -> None:
        if not self.documents:
            raise ValueError("There are no documents to load.")
        if self.batch_size < 1:
            raise ValueError(f"A batch must have at least 1 row, not {self.batch_size}.")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must be from 0 to 1, not {self.label_dropout}.")
        for part in self.documents[1:]:
            if part.representation.fingerprint != self.representation.fingerprint:
                raise ValueError(
                    "Documents of different representations cannot share rows: "
                    f"{self.representation.fingerprint} {self.representation.to_config()} and "
                    f"{part.representation.fingerprint} {part.representation.to_config()}. "
                    "Prepare them with the same settings."
                )
        known = self.representation.num_labels
        for part in self.documents:
            if known and len(part.labels) and int(part.labels.max()) >= known:
                raise ValueError(
                    f"Documents have labels up to {int(part.labels.max())}, but the "
                    f"representation has tokens for {known} labels only. Prepare them with "
                    f"num_labels of at least {int(part.labels.max()) + 1}."
                )
        self._check_lengths()

    def _check_lengths(self) -> None:
        planned = self.plan.lengths
        bounds = np.cumsum([0] + [len(part.lengths) for part in self.documents])
        fits = bounds[-1] == len(planned) and all(
            np.array_equal(part.lengths + 1, planned[begin:end])
            for part, begin, end in zip(self.documents, bounds[:-1], bounds[1:], strict=True)
        )
        if not fits:
            places = sum(int(part.lengths.sum(dtype=np.int64)) for part in self.documents)
            raise ValueError(
                f"The plan was made for {len(planned):,} documents of "
                f"{int(planned.sum(dtype=np.int64)):,} places together, but these are "
                f"{bounds[-1]:,} documents of {places + bounds[-1]:,} places. Plan the lengths of "
                "these documents, each one more than its tokens, in the same order."
            )


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
        shape = (loader.batch_size, loader.plan.row_length)
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
        """Arrays [steps * rows, row_length], batch after batch."""
        first = self._start_step + window * self.steps
        steps = np.arange(first, first + self.steps)
        indices = (steps[:, None] * self._loader.batch_size + self._rows).reshape(-1)
        last_row = None if self._num_steps is None else self._loader._epoch_plan.rows_per_epoch
        return self._loader.read_rows(indices, last_row)


def _empty(rows: int, row_length: int) -> Batch:
    shape = (rows, row_length)
    names = ("tokens", "targets", "segments", "positions")
    batch: Batch = {name: np.zeros(shape, np.int32) for name in names}
    batch["weights"] = np.zeros(shape, np.float32)
    return batch


class _Writer:
    """Writes pieces of framed documents into the arrays of a batch."""

    def __init__(self, batch: Batch, eos: int):
        self._tokens, self._targets = batch["tokens"], batch["targets"]
        self._segments, self._positions = batch["segments"], batch["positions"]
        self._weights = batch["weights"]
        self._eos = eos
        self._count = np.arange(self._tokens.shape[1], dtype=np.int32)

    def __call__(
        self,
        row: int,
        at: int,
        segment: int,
        document: np.ndarray,
        start_token: int,
        start: int,
        length: int,
    ) -> None:
        """Writes places `start` to `start + length` of the framed document at place `at`."""
        end = at + length
        stop = start + length
        if start:
            self._tokens[row, at:end] = document[start - 1 : stop - 1]
        else:
            self._tokens[row, at] = start_token
            self._tokens[row, at + 1 : end] = document[: length - 1]
        if stop > document.size:
            self._targets[row, at : end - 1] = document[start:]
            self._targets[row, end - 1] = self._eos
        else:
            self._targets[row, at:end] = document[start:stop]
        self._segments[row, at:end] = segment
        self._positions[row, at:end] = self._count[:length]
        self._weights[row, at:end] = 1.0
