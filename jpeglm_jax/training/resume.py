"""Where a run begins: numbers that can be run, and its first state.

The state is that of its own newest checkpoint, or has the weights of another run or of a seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.utils.seeds import check_seed
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.identity import require_finite
from jpeglm_jax.training.checkpoint import CheckpointError, Checkpoints, refuse_difference, shape_of
from jpeglm_jax.training.data import RunData
from jpeglm_jax.training.step import TrainState, TrainStep, compile_init

# Min and max of numbers of a configuration, by name; what computes with a number may narrow them.
# LOOP: of any run that takes steps.
LOOP_WHOLE = {
    "steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "watchdog": (0, math.inf),
    "cpu_devices": (0, math.inf),
    "optimizer.warmup_steps": (0, math.inf),
    "optimizer.decay_steps": (0, math.inf),
    "checkpoint.every": (0, math.inf),
    "checkpoint.keep": (1, math.inf),
    "checkpoint.keep_every": (0, math.inf),
    "log.every": (1, math.inf),
    "evaluate.every": (0, math.inf),
    "evaluate.batches": (0, math.inf),
    "sample.every": (0, math.inf),
    "sample.num": (0, math.inf),
}
_WHOLE = {
    "seq_len": (1, math.inf),
    "optimizer.grad_accum_steps": (1, math.inf),
    "sample.batch_size": (1, math.inf),
    "model.layers": (1, math.inf),
    "model.width": (1, math.inf),
    "model.heads": (1, math.inf),
    "model.kv_heads": (1, math.inf),
    "model.head_dim": (1, math.inf),
    "model.ffn": (1, math.inf),
}
UNDER_ONE = math.nextafter(1.0, 0.0)
LOOP_REAL = {
    "data.eval_fraction": (0, 1),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.final_fraction": (0, 1),
    "optimizer.b1": (0, UNDER_ONE),
    "optimizer.b2": (0, UNDER_ONE),
    "optimizer.eps": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "optimizer.ema": (0, UNDER_ONE),
    "optimizer.skip_spikes": (0, math.inf),
}
_REAL = {
    "data.label_dropout": (0, 1),
    "optimizer.z_loss": (0, math.inf),
    "model.norm_eps": (0, math.inf),
    "model.rope_theta": (1, math.inf),
    "sample.prefix_ratio": (0, 1),
}
Ranges = Mapping[str, tuple[float, float]]


def check_numbers(config: ConfigDict) -> None:
    """Checks the numbers of a configuration before any work is done.

    Raises ValueError, naming it, for a number that is not finite or outside of its range.
    """
    check_ranges(config, LOOP_WHOLE | _WHOLE, LOOP_REAL | _REAL)
    check_seed(config.seed)
    if config.sample.every and config.sample.num:
        SamplingParams.from_config(config.sample)


def check_ranges(config: ConfigDict, whole: Ranges, real: Ranges) -> None:
    """Raises ValueError, naming it, for a number that is not finite or outside of its range.

    Args:
      config: the run's.
      whole, real: (min, max) of numbers by their dotted names.
    """
    for name, (low, high) in {**whole, **real}.items():
        value = functools.reduce(lambda section, field: section[field], name.split("."), config)
        if not (math.isfinite(value) and low <= value <= high):
            kind = "a whole number" if name in whole else "a finite number"
            bounds = {math.inf: f"{low} or more", UNDER_ONE: f"{low} or more and less than 1"}
            raise ValueError(
                f"{name} is {value}; expected {kind}, {bounds.get(high, f'{low} to {high}')}"
            )


def identity_of(config: ConfigDict, data: RunData) -> dict[str, Any]:
    """What must be the same when a run is resumed: representation, model and batches."""
    return {
        "representation": data.representation.to_config(),
        "model": shape_of(config),
        "data": {
            "batches": data.train_loader.fingerprint,
            "longest_document": data.longest_document,
        },
    }


def newest(
    checkpoints: Checkpoints, identity: Mapping[str, Any], steps: int
) -> tuple[int | None, dict[str, Any]]:
    """The step of the newest checkpoint of a run, and its meta; (None, {}) if there is none.

    Args:
      checkpoints: of the run.
      identity: what must be the same when it is resumed, by part.
      steps: length of the run.

    Raises:
      CheckpointError: it is of another identity, or of a step after the last.
    """
    latest = checkpoints.latest()
    if latest is None:
        return None, {}
    if latest > steps:
        raise CheckpointError(
            f"the newest checkpoint of this workdir is of step {latest}, after the last of "
            f"steps = {steps}; give another --workdir, or more steps"
        )
    meta = checkpoints.meta(latest)
    for part, ours in identity.items():
        refuse_difference(ours, meta[part], part)
    return latest, meta


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
      CheckpointError: a checkpoint is of another representation, model or data, or of a step after
        the last.
      NotFiniteError: weights of `config.init_from` are NaN or infinite; names them.
    """
    latest, meta = newest(checkpoints, identity, config.steps)
    if latest is not None:
        where = train_step.state_shardings(mesh)
        return latest, meta, checkpoints.restore(latest, train_step.abstract_state(), where)
    state = compile_init(train_step, mesh)(np.uint32(config.seed))
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
