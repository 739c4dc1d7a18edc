"""AdamW with the Llama-2 recipe: warm-up, cosine or warm-up-stable-decay, clipping, decay."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

SCHEDULES = ("cosine", "wsd")


class Lengths(NamedTuple):
    """Steps of the parts of a schedule.

    Attributes:
      warmup, stable, decay: steps of each; together the length of the run.
      scaled: whether they are shorter than configured, because the run is.
    """

    warmup: int
    stable: int
    decay: int
    scaled: bool


def lengths(config: ConfigDict, steps: int) -> Lengths:
    """The parts of the schedule of a run; those of a run too short for them are scaled down.

    A run is too short if warm-up and decay take more steps than it has. wsd then scales both by the
    same factor to fill the run. cosine, whose decay is all that follows the warm-up, scales the
    warm-up to a tenth of the run.

    Args:
      config: `config.optimizer`.
      steps: length of the whole run.

    Raises:
      ValueError: an unknown schedule, or a negative number of steps.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(
            f"optimizer.schedule is {config.schedule!r}; expected one of {', '.join(SCHEDULES)}"
        )
    warmup = config.warmup_steps
    decay = config.decay_steps if config.schedule == "wsd" else 0
    if warmup < 0 or decay < 0 or steps < 1:
        raise ValueError(
            f"optimizer.warmup_steps is {warmup}, optimizer.decay_steps {config.decay_steps}, "
            f"steps {steps}; expected 0 or more, and at least one step"
        )
    if config.schedule == "cosine":
        scaled = warmup >= steps and warmup > 0
        warmup = steps // 10 if scaled else warmup
        return Lengths(warmup, 0, steps - warmup, scaled)
    scaled = warmup + decay > steps
    if scaled:
        warmup = steps * warmup // (warmup + decay)
        decay = steps - warmup
    return Lengths(warmup, steps - warmup - decay, decay, scaled)


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate of each step, counted from 0; see `lengths`.

    Args:
      config: `config.optimizer`.
      steps: length of the whole run.
    """
    peak = config.learning_rate
    warmup, stable, decay, _ = lengths(config, steps)
    parts = [(optax.linear_schedule(0.0, peak, warmup), warmup)]
    if config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, decay, alpha=config.final_fraction)
    else:
        parts.append((optax.constant_schedule(peak), stable))
        fall = optax.linear_schedule(peak, peak * config.final_fraction, max(decay, 1))
    ends = np.cumsum([length for _, length in parts]).tolist()
    return optax.join_schedules([*(part for part, _ in parts), fall], ends)


def make(config: ConfigDict, steps: int, axes: Any) -> optax.GradientTransformation:
    """The optimiser.

    Args:
      config: `config.optimizer`.
      steps: length of the whole run.
      axes: logical axes of every parameter; the scales of norms are not decayed.
    """
    if config.skip_spikes and config.skip_spikes <= 1:
        raise ValueError(
            f"optimizer.skip_spikes is {config.skip_spikes}; expected 0 (off) or more than 1: "
            "times the average norm of the gradient"
        )
    decayed = jax.tree.map(lambda a: "norm" not in a, axes, is_leaf=lambda a: isinstance(a, tuple))
    direction = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
    if config.skip_spikes:
        direction = skip_spikes(direction, config.skip_spikes)
    # Outside of what is skipped: the schedule counts every step of the run.
    return optax.chain(direction, optax.scale_by_learning_rate(schedule(config, steps)))


class SpikeState(NamedTuple):
    """State of `skip_spikes`.

    Attributes:
      inner: of what is wrapped.
      norm: float32, moving average of the norm of the gradient.
      seen, skipped: int32, steps so far and those of them that were skipped.
    """

    inner: Any
    norm: jax.Array
    seen: jax.Array
    skipped: jax.Array


def skip_spikes(
    inner: optax.GradientTransformation, factor: float, *, decay: float = 0.99, warmup: int = 100
) -> optax.GradientTransformation:
    """Leaves everything as it was in steps whose gradient is far larger than usual.

    PaLM (Chowdhery et al. 2022, section 5.1) went around spikes by leaving out the batches that
    brought them; this does so as they come.

    Args:
      inner: the optimiser.
      factor: a step is skipped if the norm of its gradient is more than this times the average.
      decay: of the average. A spike enters it as `factor` times the average, so that gradients
        that stay large are soon followed again.
      warmup: steps from the first that are never skipped.
    """

    def init(params: Any) -> SpikeState:
        zero = jnp.zeros([], jnp.int32)
        return SpikeState(inner.init(params), jnp.zeros([], jnp.float32), zero, zero)

    def update(gradients: Any, state: SpikeState, params: Any = None) -> tuple[Any, SpikeState]:
        norm = optax.tree.norm(gradients)
        limit = factor * state.norm
        spike = (state.seen >= warmup) & (norm > limit)
        updates, new = inner.update(gradients, state.inner, params)
        updates = jax.tree.map(lambda x: jnp.where(spike, jnp.zeros_like(x), x), updates)
        new = jax.tree.map(lambda a, b: jnp.where(spike, b, a), new, state.inner)
        usual = jnp.where(spike, limit, norm)
        # The average of the steps there were, from the first on.
        weight = jnp.maximum(1 - decay, 1 / (state.seen + 1))
        average = state.norm + weight * (usual - state.norm)
        return updates, SpikeState(new, average, state.seen + 1, state.skipped + spike)

    return optax.GradientTransformation(init, update)


def skipped(opt_state: Any) -> jax.Array | None:
    """Steps that `skip_spikes` has skipped so far; None if it is off."""
    direction = opt_state[0]
    return direction.skipped if isinstance(direction, SpikeState) else None


def steps_taken(opt_state: Any) -> jax.Array:
    """Steps of the run so far, skipped ones included; int32."""
    return opt_state[1].count


def ema_decay(config: ConfigDict, step: jax.Array) -> jax.Array:
    """Decay of the moving average of the weights in a step, counted from 1.

    It rises to `config.ema` as (1 + step) / (10 + step), so that the average of a short run is not
    that of its initial weights.
    """
    return jnp.minimum(config.ema, (1 + step) / (10 + step))
