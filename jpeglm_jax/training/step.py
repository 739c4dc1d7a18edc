"""What one step is: loss, gradients, update. The same function trains on a laptop and on a pod.

Nothing here knows the mesh: `TrainStep` is a value made of the configuration, its methods are pure,
and `jit_on_mesh` puts one of them on a mesh with explicit shardings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm_jax.model.config import ModelConfig, model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh
from jpeglm_jax.parallel.sharding import BATCH_AXES, Batch, batch_shardings
from jpeglm_jax.training import optimizer

if TYPE_CHECKING:  # needs the codecs, which the step does not
    from data_pipelines.representations.base import Representation


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      params: float32 weights, a nested dict.
      opt_state: the optimiser's.
      ema: moving average of the weights, or None if it is switched off.
      finite: bool scalar, whether all steps so far were; see `TrainStep.update`. Checkpoints, which
        are never of a step after one that was not, do not store it.
    """

    params: Any
    opt_state: Any
    ema: Any
    finite: jax.Array

    @property
    def averaged(self) -> Any:
        """The weights to evaluate and to sample from: their moving average if there is one."""
        return self.params if self.ema is None else self.ema


def check_mesh(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> None:
    """Refuses a mesh that does not divide the run, by name, before anything is allocated."""
    sharding.check_divides(
        mesh,
        {
            "model.width": ("embed", model.width),
            "model.heads": ("act_heads", model.heads),
            "model.kv_heads": ("act_heads", model.kv_heads),
            "model.ffn": ("ffn", model.ffn),
            "seq_len": ("length", config.seq_len),
            "batch_size / optimizer.grad_accum_steps": (
                "batch",
                config.batch_size // config.optimizer.grad_accum_steps,
            ),
        },
    )
    if config.batch_size % config.optimizer.grad_accum_steps:
        raise sharding.MeshError(
            f"batch_size = {config.batch_size} cannot be split into optimizer.grad_accum_steps = "
            f"{config.optimizer.grad_accum_steps} equal parts"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """How a model is made, judged and improved.

    Attributes:
      model: the model without its weights.
      config: `config.optimizer`.
      steps: length of the run, for the learning rate's schedule.
      eos: the token that ends a document; in targets it counts documents.
    """

    model: ModelSpec
    config: ConfigDict
    steps: int
    eos: int

    # If a step is not finite.
    advice: ClassVar[str] = (
        "Lower optimizer.learning_rate, or turn on model.qk_norm or optimizer.z_loss."
    )

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return optimizer.make(self.config, self.steps, self.model.axes)

    def init(self, seed: int | jax.Array) -> TrainState:
        """The state before the first step; a function of the seed alone."""
        params = self.model.init(seed)
        # A copy, so that weights and average can be donated one by one.
        ema = jax.tree.map(jnp.copy, params) if self.config.ema else None
        return TrainState(params, self.optimizer.init(params), ema, jnp.array(True))

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state, without allocating any of it."""
        return jax.eval_shape(self.init, 0)

    def state_shardings(self, mesh: Mesh) -> TrainState:
        """Where every array of the state lies; moments lie where their weights do."""
        params = self.model.param_shardings(mesh)
        abstract = self.abstract_state()
        opt_state = optax.tree_utils.tree_map_params(
            self.optimizer,
            lambda _, where: where,
            abstract.opt_state,
            params,
            transform_non_params=lambda _: sharding.replicated(mesh),
        )
        ema = params if self.config.ema else None
        where: Any = TrainState  # of shardings instead of arrays
        return where(params, opt_state, ema, sharding.replicated(mesh))

    def loss_sums(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Sums over the places of a batch, float32 scalars.

        Returns:
          nll: negative log-likelihood in nats; z: squared log-normaliser (the z-loss);
          tokens: places that count; documents: ends of documents among them; bytes: codec bytes.
        """
        logits = self.model.logits(params, batch)
        weights, targets = batch["weights"], batch["targets"]
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        # Picked by comparison: the gradient of an index is a scatter, which runs entry by entry.
        is_target = targets[..., None] == jnp.arange(logits.shape[-1])
        picked = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        return {
            "nll": jnp.sum(weights * (normaliser - picked)),
            "z": jnp.sum(weights * jnp.square(normaliser)),
            "tokens": jnp.sum(weights),
            "documents": jnp.sum(weights * (targets == self.eos)),
            "bytes": jnp.sum(batch["codec_bytes"]),
        }

    def gradients(self, params: Any, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
        """Gradients of the mean loss over all places of the batch, and the batch's sums.

        The divisor is fixed before the batch is split, so that any number of parts gives the
        same gradients.
        """
        total = jnp.maximum(jnp.sum(batch["weights"]), 1.0)

        def loss(params: Any, part: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
            sums = self.loss_sums(params, part)
            return (sums["nll"] + self.config.z_loss * sums["z"]) / total, sums

        gradient = jax.grad(loss, has_aux=True)
        parts = self.config.grad_accum_steps
        if parts == 1:
            return gradient(params, batch)

        def split(x: jax.Array) -> jax.Array:
            # Row r goes to part r % parts, so that every device keeps rows of its own.
            x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
            return sharding.constrain(x, None, *BATCH_AXES)

        def add(carry: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, gradient(params, part)), None

        batch = {key: split(x) for key, x in batch.items()}
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(gradient, params, {key: x[0] for key, x in batch.items()}),
        )
        return jax.lax.scan(add, zeros, batch)[0]

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimiser step.

        If the loss or a gradient is not finite, the weights stay as they are, in this step and in
        all that follow: so the weights that a report of the step finds are those it was computed
        with, although the report comes after the next step was begun.

        Returns:
          The new state, and metrics: the batch's sums, `grad_norm`, `finite` (0 or 1) and, if steps
          with spikes are skipped, `skipped`, their number since the start of the run.
        """
        gradients, metrics = self.gradients(state.params, batch)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        finite = jnp.isfinite(metrics["grad_norm"]) & jnp.isfinite(metrics["nll"]) & state.finite
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if self.config.ema:
            decay = optimizer.ema_decay(self.config, optimizer.steps_taken(opt_state))
            ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        new = TrainState(params, opt_state, ema, finite)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        new.finite = finite
        metrics["finite"] = finite.astype(jnp.float32)
        if (count := optimizer.skipped(new.opt_state)) is not None:
            metrics["skipped"] = count.astype(jnp.float32)
        return new, metrics

    def not_finite(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """For each weight, by its path: how many entries of its gradient are not finite."""
        gradients, _ = self.gradients(params, batch)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): jnp.sum(~jnp.isfinite(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        }


def make_train_step(
    config: ConfigDict, representation: Representation, platform: str, max_documents: int
) -> TrainStep:
    """The train step of a run.

    Args:
      config: the run's.
      representation: what its tokens mean.
      platform: "cpu", "gpu" or "tpu".
      max_documents: documents that a row of its plan may hold, padding counted as one.

    Raises:
      ValueError: the configuration allows fewer documents per row than the plan.
    """
    allowed = config.model.max_documents
    if 0 < allowed < max_documents:
        raise ValueError(
            f"model.max_documents = {allowed}, but packing may put {max_documents} documents into "
            f"a row, padding counted as one; set model.max_documents={max_documents}, or 0"
        )
    model = model_config(config.model, representation.vocab_size, platform)
    return TrainStep(
        ModelSpec(dataclasses.replace(model, max_documents=allowed or max_documents)),
        config.optimizer,
        config.steps,
        representation.eos,
    )


def compile_init(train_step: TrainStep, mesh: Mesh) -> Callable[[int | np.uint32], TrainState]:
    """seed -> a fresh state, each device making its own part only."""
    return jit_on_mesh(
        train_step.init, mesh, once=True, out_shardings=train_step.state_shardings(mesh)
    )


def compile_train_step(train_step: TrainStep, mesh: Mesh) -> Callable[..., Any]:
    """(state, batch) -> (state, metrics); the old state's memory is given up."""
    state = train_step.state_shardings(mesh)
    return jit_on_mesh(
        train_step.update,
        mesh,
        in_shardings=(state, batch_shardings(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def compile_eval_step(train_step: TrainStep, mesh: Mesh) -> Callable[..., Any]:
    """(params, batch) -> sums."""
    return jit_on_mesh(
        train_step.loss_sums,
        mesh,
        in_shardings=(train_step.state_shardings(mesh).params, batch_shardings(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
