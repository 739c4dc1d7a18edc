"""Where a run begins: at its own newest checkpoint, at the weights of another run, or at a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm_jax.model.identity import require_finite
from jpeglm_jax.training.checkpoint import Checkpoints, refuse_difference, shape_of
from jpeglm_jax.training.data import RunData
from jpeglm_jax.training.step import TrainState, TrainStep, compile_init


def identity_of(config: ConfigDict, data: RunData) -> dict[str, Any]:
    """What must be the same when a run is resumed: representation, model and batches."""
    return {
        "representation": data.representation.to_config(),
        "model": shape_of(config),
        "data": {"batches": data.train_loader.fingerprint},
    }


def begin(
    config: ConfigDict,
    identity: Mapping[str, Any],
    train_step: TrainStep,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> tuple[int, dict[str, Any], TrainState]:
    """The step to resume from, the meta of its checkpoint, and the state.

    Args:
      config: the run's; `config.init_from` names the run whose weights a new run starts from.
      identity: see `identity_of`.
      train_step, mesh: the model, and where its state lies.
      checkpoints: of this run.

    Raises:
      CheckpointError: a checkpoint is of another representation, model or data.
      NotFiniteError: weights of `config.init_from` are NaN or infinite; names them.
    """
    latest = checkpoints.latest()
    if latest is not None:
        meta = checkpoints.meta(latest)
        for part, ours in identity.items():
            refuse_difference(ours, meta[part], part)
        where = train_step.state_shardings(mesh)
        return latest, meta, checkpoints.restore(latest, train_step.abstract_state(), where)
    state = compile_init(train_step, mesh)(config.seed)
    if config.init_from:
        spec = train_step.model
        with Checkpoints(config.init_from) as other:
            meta = other.meta()
            for part in ("representation", "model"):
                refuse_difference(identity[part], meta[part], part)
            state.params = other.restore_params(spec.abstract_params, spec.param_shardings(mesh))
        require_finite(state.params, config.init_from)
        if state.ema is not None:
            state.ema = jax.tree.map(jax.numpy.copy, state.params)
    return 0, {}, state
