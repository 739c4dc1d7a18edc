"""Exact log-likelihoods of token sequences of any length under a model.

`jpeglm_jax.api` and `evals.codelength.likelihoods` score documents here.

The model has a sequence length of T. A document of n tokens has n + 1 positions, because its end
is predicted too. A longer document is scored in overlapping windows of T positions that advance by
`stride`: all targets of the first window count, and the last `stride` of every later one, so that
each token is predicted once, from at least T - stride positions of context. Positions are counted
from the beginning of a window, as in a training row that begins inside a document.

Documents are packed into rows as in training, and do not attend to each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.loading import framing
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh
from jpeglm_jax.parallel.sharding import BATCH_AXES, Batch, batch_shardings


class Window(NamedTuple):
    """A part of a framed document that the model reads at once.

    Attributes:
      start: its first position.
      length: number of positions.
      context: positions at its beginning whose targets count in the previous window.
    """

    start: int
    length: int
    context: int


def windows(num_positions: int, seq_len: int, stride: int) -> Iterator[Window]:
    """The windows of a framed document.

    Args:
      num_positions: of the document, its tokens plus one.
      seq_len: max positions of a window.
      stride: positions by which windows advance, 1 to `seq_len`.
    """
    start = counted = 0
    while counted < num_positions:
        end = min(start + seq_len, num_positions)
        yield Window(start, end - start, counted - start)
        counted, start = end, start + stride


def resolve_stride(stride: int, seq_len: int) -> int:
    """Replaces a stride of 0 by half a window. Raises ValueError unless it is 0 to `seq_len`."""
    if not 0 <= stride <= seq_len:
        raise ValueError(f"stride is {stride}; expected 1 to {seq_len}, the sequence length")
    return stride or max(1, seq_len // 2)


def losses(spec: ModelSpec, params: object, batch: Batch) -> jax.Array:
    """Negative log-likelihood of every target in nats, float32 [B, S]; 0 for padding."""
    model = nnx.merge(spec.graph, params)
    logits = model(batch["tokens"], batch["segments"], batch["positions"])
    target_logits = jnp.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    return batch["weights"] * (jax.nn.logsumexp(logits, axis=-1) - target_logits)


class Scorer:
    """Log-likelihoods of documents, computed a batch of rows at a time.

    Args:
      model: a trained model.
      batch_size: rows per batch; rounded up to a multiple of the mesh's batch axis.
      stride: of the windows of documents longer than a row; 0: half a row.
    """

    def __init__(self, model: TrainedModel, *, batch_size: int = 16, stride: int = 0):
        parts = sharding.axis_size(model.mesh, "batch")
        self.seq_len: int = model.config.seq_len
        self.stride = resolve_stride(stride, self.seq_len)
        self._batch_size = -(-batch_size // parts) * parts
        self._eos = model.representation.eos
        self._params = model.params
        self._rows = sharding.named(model.mesh, *BATCH_AXES)
        spec, mesh = model.spec, model.mesh
        self._losses = jit_on_mesh(
            lambda params, batch: losses(spec, params, batch),
            mesh,
            in_shardings=(spec.param_shardings(mesh), batch_shardings(mesh)),
            out_shardings=sharding.replicated(mesh),
        )

    def __call__(self, documents: Iterable[tuple[int, np.ndarray]]) -> Iterator[float]:
        """Yields log-likelihoods in nats, in order.

        Args:
          documents: (start token, tokens [n]) of each.
        """
        rows = _Rows(self._batch_size, self.seq_len)
        totals: list[float] = []  # of the documents in `rows`; the last may be incomplete
        for start_token, tokens in documents:
            totals.append(0.0)
            for window in windows(len(tokens) + 1, self.seq_len, self.stride):
                if not rows.fits(window.length):
                    self._add(rows, totals)
                    yield from totals[:-1]
                    totals, rows = totals[-1:], _Rows(self._batch_size, self.seq_len)
                rows.write(window, len(totals) - 1, tokens, start_token, self._eos)
        self._add(rows, totals)
        yield from totals

    def _add(self, rows: _Rows, totals: list[float]) -> None:
        batch = {name: jax.device_put(x, self._rows) for name, x in rows.batch.items()}
        found = np.asarray(jax.device_get(self._losses(self._params, batch)), np.float64)
        for row, first, end, document in rows.spans:
            totals[document] -= float(found[row, first:end].sum())


class _Rows:
    """A batch that is filled window by window."""

    def __init__(self, count: int, seq_len: int):
        self.batch = framing.empty_batch(count, seq_len)
        self.spans: list[tuple[int, int, int, int]] = []  # row, first counted, end, document
        self._count, self._seq_len = count, seq_len
        self._row = self._position = self._segment = 0

    def fits(self, length: int) -> bool:
        return self._position + length <= self._seq_len or self._row + 1 < self._count

    def write(
        self, window: Window, document: int, tokens: np.ndarray, start_token: int, eos: int
    ) -> None:
        if self._position + window.length > self._seq_len:
            self._row, self._position, self._segment = self._row + 1, 0, 0
        self._segment += 1
        framing.write_piece(
            self.batch,
            self._row,
            self._position,
            self._segment,
            tokens,
            0,  # its codec bytes are not needed
            start_token,
            eos,
            window.start,
            window.length,
        )
        first, end = self._position + window.context, self._position + window.length
        self.spans.append((self._row, first, end, document))
        self._position = end
