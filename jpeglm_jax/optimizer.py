"""AdamW with the Llama-2 recipe: warm-up, cosine or warm-up-stable-decay, clipping, decay."""

from __future__ import annotations

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

SCHEDULES = ("cosine", "wsd")


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate by step.

    Args:
      config: `config.optimizer`.
      steps: length of the whole run.

    Raises:
      ValueError: an unknown schedule, or parts longer than the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    final = peak * config.final_fraction
    if config.schedule not in SCHEDULES:
        raise ValueError(
            f"optimizer.schedule is {config.schedule!r}; expected one of {', '.join(SCHEDULES)}"
        )
    decay = config.decay_steps if config.schedule == "wsd" else steps - warmup
    if warmup + decay > steps or decay < 1:
        raise ValueError(
            f"a {config.schedule} schedule of {warmup} steps of warm-up (optimizer.warmup_steps) "
            f"and {decay} of decay does not fit a run of {steps} steps"
        )
    rise = optax.linear_schedule(0.0, peak, warmup)
    if config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, decay, alpha=config.final_fraction)
        return optax.join_schedules([rise, fall], [warmup])
    stable = optax.constant_schedule(peak)
    fall = optax.linear_schedule(peak, final, decay)
    return optax.join_schedules([rise, stable, fall], [warmup, steps - decay])


def make(config: ConfigDict, steps: int, axes: Any) -> optax.GradientTransformation:
    """The optimiser.

    Args:
      config: `config.optimizer`.
      steps: length of the whole run.
      axes: logical axes of every parameter; the scales of norms are not decayed.
    """
    decayed = jax.tree.map(lambda a: "norm" not in a, axes, is_leaf=lambda a: isinstance(a, tuple))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.adamw(
            schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )
