"""The gate of a comparison: a model learns eight documents by heart before anything is compared.

A representation whose documents cannot be overfitted has a fault in its tokens, its loss or its
positions, and would lose a comparison for that reason.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.loading.framing import empty_batch, write_piece
from data_pipelines.representations.base import Representation
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh
from jpeglm_jax.parallel.sharding import BATCH_AXES, batch_shardings
from jpeglm_jax.training.step import compile_init, compile_train_step, make_train_step

_CHECK_EVERY = 50  # steps
_LONG = 512  # positions


class OverfitError(ValueError):
    """A model that does not learn a few documents by heart."""


def overfit(
    config: ConfigDict,
    representation: Representation,
    documents: list[np.ndarray],
    mesh: Mesh,
    max_steps: int,
) -> dict[str, Any]:
    """Trains on a few documents until the most likely token is right wherever it is determined.

    A token is determined if no other of the documents has the same tokens before it and continues
    differently. All documents begin with BOS.

    Args:
      config: of a training run, for its model and optimizer.
      representation: of the documents.
      documents: tokens, integer [n] each.
      mesh: devices; one is enough.
      max_steps: at which it gives up.

    Returns:
      documents, tokens (their number), steps (taken until all tokens were right).

    Raises OverfitError if some are wrong after `max_steps`.
    """
    length = max(len(tokens) for tokens in documents) + 1
    batch = empty_batch(len(documents), length)
    for row, tokens in enumerate(documents):
        write_piece(
            batch, row, 0, 1, tokens, 0, representation.bos, representation.eos, 0, len(tokens) + 1
        )
    known = determined(documents, batch["targets"], batch["weights"] > 0)
    config = config.copy_and_resolve_references()
    config.steps = max_steps
    config.optimizer.update(schedule="wsd", warmup_steps=10, decay_steps=1, weight_decay=0.0)
    if length > _LONG:  # one at a time: attention of all of them needs gigabytes
        config.optimizer.grad_accum_steps = len(documents)
    step = make_train_step(config, representation, jax.default_backend(), 2)
    where = sharding.named(mesh, *BATCH_AXES)
    placed = {name: jax.device_put(values, where) for name, values in batch.items()}
    update = compile_train_step(step, mesh)
    predict = jit_on_mesh(
        lambda params, batch: step.model.logits(params, batch).argmax(-1),
        mesh,
        in_shardings=(step.state_shardings(mesh).params, batch_shardings(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
    state = compile_init(step, mesh)(config.seed)
    bar = tqdm.trange(1, max_steps + 1, desc="documents by heart", unit="step", leave=False)
    for taken in bar:
        state, _ = update(state, placed)
        if taken % _CHECK_EVERY == 0 or taken == max_steps:
            right = np.asarray(predict(state.params, placed)) == batch["targets"]
            if right[known].all():
                return {"documents": len(documents), "tokens": int(known.sum()), "steps": taken}
            bar.set_postfix(wrong=int((~right[known]).sum()))
    raise OverfitError(
        f"{representation.name} documents were not learned by heart: of {int(known.sum())} tokens "
        f"of {len(documents)} documents {int((~right[known]).sum())} are still wrong after "
        f"{max_steps} steps; raise overfit.max_steps or learning_rates, or check the representation"
    )


def determined(documents: list[np.ndarray], targets: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Positions whose target follows from the tokens before it, bool [R, T].

    Args:
      documents: tokens of the rows.
      targets: of the rows, with the end token, int32 [R, T].
      used: positions that are not padding, bool [R, T].
    """
    found = used.copy()
    for row, tokens in enumerate(documents):
        for other in documents:
            common = 0
            shorter = min(len(tokens), len(other))
            while common < shorter and tokens[common] == other[common]:
                common += 1
            if len(tokens) != len(other) or common < len(tokens):
                found[row, common] = False  # here the two differ
    return found
