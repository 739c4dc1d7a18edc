"""The exact log-likelihood of documents under a model, whatever their length.

A model reads rows of T places. A document of n tokens has n + 1 of them (its end is predicted,
too). One that does not fit is read through windows of T places that move on by `stride`: the first
window's targets all count, of every later one only the last `stride`, so that each token is
predicted once, from at least the T - stride places before it. Places are numbered from the
beginning of a window, as in a row of training that begins inside a document.

Documents share rows as in training, and do not see each other.
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
    """A part of a framed document that is read at once.

    Attributes:
      start: its first place.
      length: how many.
      context: places at its beginning whose targets were counted in the window before.
    """

    start: int
    length: int
    context: int


def windows(places: int, length: int, stride: int) -> Iterator[Window]:
    """The windows of a framed document of so many places.

    Args:
      places: of the document, its tokens and one more.
      length: the most places of a window.
      stride: how far a window moves on, 1 to `length`.
    """
    start = counted = 0
    while counted < places:
        end = min(start + length, places)
        yield Window(start, end - start, counted - start)
        counted, start = end, start + stride


def check_stride(stride: int, length: int) -> int:
    """The stride that was asked for; 0 stands for half a window. Raises ValueError."""
    if not 0 <= stride <= length:
        raise ValueError(f"stride is {stride}; expected 1 to {length}, the places the model reads")
    return stride or max(1, length // 2)


def losses(spec: ModelSpec, params: object, batch: Batch) -> jax.Array:
    """Negative log-likelihood of every target in nats, float32 [B, S]; 0 for padding."""
    model = nnx.merge(spec.graph, params)
    logits = model(batch["tokens"], batch["segments"], batch["positions"])
    picked = jnp.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    return batch["weights"] * (jax.nn.logsumexp(logits, axis=-1) - picked)


class Scorer:
    """Log-likelihoods of documents, computed a batch of rows at a time.

    Args:
      model: whose.
      batch_size: rows computed together; rounded up to what the mesh divides.
      stride: of the windows of documents that are longer than a row; 0: half a row.
    """

    def __init__(self, model: TrainedModel, *, batch_size: int = 16, stride: int = 0):
        parts = sharding.axis_size(model.mesh, "batch")
        self.length: int = model.config.seq_len
        self.stride = check_stride(stride, self.length)
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
        """Log-likelihoods in nats, in order.

        Args:
          documents: (start token, tokens [n]) of each.
        """
        rows = _Rows(self._batch_size, self.length)
        totals: list[float] = []  # of the documents that are in `rows`, the last one so far
        for start_token, tokens in documents:
            totals.append(0.0)
            for window in windows(len(tokens) + 1, self.length, self.stride):
                if not rows.fits(window.length):
                    self._add(rows, totals)
                    yield from totals[:-1]
                    totals, rows = totals[-1:], _Rows(self._batch_size, self.length)
                rows.write(window, len(totals) - 1, tokens, start_token, self._eos)
        self._add(rows, totals)
        yield from totals

    def _add(self, rows: _Rows, totals: list[float]) -> None:
        batch = {name: jax.device_put(x, self._rows) for name, x in rows.batch.items()}
        found = np.asarray(jax.device_get(self._losses(self._params, batch)), np.float64)
        for row, first, end, document in rows.pieces:
            totals[document] -= float(found[row, first:end].sum())


class _Rows:
    """A batch that is being filled, one window after the other."""

    def __init__(self, count: int, length: int):
        self.batch = framing.empty_batch(count, length)
        self.pieces: list[tuple[int, int, int, int]] = []  # row, first counted, end, document
        self._count, self._length = count, length
        self._row = self._at = self._segment = 0

    def fits(self, length: int) -> bool:
        return self._at + length <= self._length or self._row + 1 < self._count

    def write(
        self, window: Window, document: int, tokens: np.ndarray, start_token: int, eos: int
    ) -> None:
        if self._at + window.length > self._length:
            self._row, self._at, self._segment = self._row + 1, 0, 0
        self._segment += 1
        framing.write_piece(
            self.batch,
            self._row,
            self._at,
            self._segment,
            tokens,
            start_token,
            eos,
            window.start,
            window.length,
        )
        first, end = self._at + window.context, self._at + window.length
        self.pieces.append((self._row, first, end, document))
        self._at = end
