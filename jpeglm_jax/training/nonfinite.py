"""The report of a step whose loss or gradients were not finite."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data_pipelines.utils import files
from jpeglm_jax.parallel import distributed, sharding
from jpeglm_jax.parallel.jit import jit_on_mesh
from jpeglm_jax.parallel.sharding import BATCH_AXES, batch_shardings
from jpeglm_jax.training.data import RunData
from jpeglm_jax.training.step import TrainState

_NAMED = 8  # documents in the message; the file has all


class Differentiable(Protocol):
    """What is needed of a train step, of a language model or a tokenizer.

    Attributes:
      advice: what to do about a step that is not finite, one sentence.
    """

    advice: ClassVar[str]

    def state_shardings(self, mesh: Mesh) -> TrainState: ...
    def not_finite(self, params: Any, batch: Any) -> dict[str, jax.Array]: ...


class NotFinite(RuntimeError):
    """The loss or a gradient was not a finite number."""


def not_finite(
    workdir: epath.Path,
    train_step: Differentiable,
    mesh: Mesh,
    state: TrainState,
    data: RunData,
    step: int,
) -> NotFinite:
    """The error to raise for a step that was not finite; writes its batch to a file for a replay.

    `workdir/not_finite_STEP.json` holds the step, its first row in the plan, how many entries of
    the gradient of each weight are not finite, and the documents row by row: of each piece the
    document's number and key, the position in it where the piece begins, and its length.

    All processes call it together, for the gradient is computed again.

    Args:
      workdir: the run's folder.
      train_step, mesh: the model and where it lies.
      state: the newest one; such a step, and those after it, leave the weights alone.
      data: where the batch came from.
      step: number of the step, from 1.
    """
    loader, documents = data.train_loader, data.train
    rows = sharding.named(mesh, *BATCH_AXES)
    with loader.batches(step - 1, sharding=rows) as batches:
        batch = next(batches)
    in_shardings = (train_step.state_shardings(mesh).params, batch_shardings(mesh))
    counts = jit_on_mesh(train_step.not_finite, mesh, in_shardings=in_shardings)(
        state.params, batch
    )
    wrong = {name: int(n) for name, n in jax.device_get(counts).items() if n}

    first = (step - 1) * loader.batch_size
    planned = loader.plan.rows(np.arange(first, first + loader.batch_size))
    keys = {number: documents.key(number) for number in np.unique(planned.pieces[:, 0]).tolist()}
    pieces = [
        [
            {"document": number, "start": start, "length": length, "key": keys[number]}
            for number, start, length in row.tolist()
        ]
        for row in planned
    ]
    path = workdir / f"not_finite_{step:08d}.json"
    if distributed.is_main():
        facts = {"step": step, "first_row": first, "gradients": wrong, "rows": pieces}
        files.write_atomically(path, files.to_json(facts))

    gradients = ", ".join(f"{name} ({n:,} entries)" for name, n in wrong.items())
    named = list(keys.values())
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return NotFinite(
        f"step {step}: the loss or a gradient is not finite. Gradients that are not: "
        f"{gradients or 'none when computed again, so the cause is in how it was computed'}. "
        f"Documents of the batch: {', '.join(named[:_NAMED])}{more}; all of them are in {path}. "
        f"The weights were left as they were before this step; the newest checkpoint is whole. "
        f"{train_step.advice}"
    )
