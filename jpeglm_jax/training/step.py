"""What one step is: loss, gradients, update. The same function trains on a laptop and on a pod.

Nothing here knows the mesh: `Recipe` is a value made of the configuration, its methods are pure,
and `compiled` puts one of them on a mesh with explicit shardings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm_jax.hardware import chips
from jpeglm_jax.model.llama import Llama, ModelConfig
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import optimizer

Batch = dict[str, jax.Array]

# Of the arrays of a batch, [rows, row length].
BATCH_AXES = ("batch", "length")
BATCH_KEYS = ("tokens", "targets", "segments", "positions", "weights")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      params: float32 weights, a nested dict.
      opt_state: the optimiser's.
      ema: moving average of the weights, or None if it is switched off.
    """

    params: Any
    opt_state: Any
    ema: Any


def compute_dtype(name: str, platform: str) -> str:
    """The configured compute type, where "auto" is bfloat16 on a TPU or GPU, float32 on a CPU."""
    if name == "auto":
        return "float32" if platform == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"model.dtype is {name!r}; expected auto, float32 or bfloat16")
    return name


def model_config(config: ConfigDict, vocab_size: int, platform: str) -> ModelConfig:
    """The shape of the model of a run; `platform` is "cpu", "gpu" or "tpu"."""
    values = config.model.to_dict()
    values["dtype"] = compute_dtype(values["dtype"], platform)
    return ModelConfig(vocab_size=vocab_size, **values)


def abstract_model(config: ModelConfig) -> tuple[Any, Any, Any]:
    """Graph, shapes and logical axes of the weights, without allocating any."""
    model = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0)))
    graph, state = nnx.split(model)
    axes = jax.tree.map(
        lambda v: v.get_metadata("axes"), state, is_leaf=lambda v: isinstance(v, nnx.Variable)
    )
    return graph, nnx.to_pure_dict(state), nnx.to_pure_dict(axes)


def check_mesh(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> None:
    """Refuses a mesh that does not divide the run, by name, before anything is allocated."""
    sharding.check_divides(
        mesh,
        {
            "model.width": ("embed", model.width),
            "model.heads": ("act_heads", model.heads),
            "model.kv_heads": ("act_heads", model.kv_heads),
            "model.ffn": ("ffn", model.ffn),
            "row_length": ("length", config.row_length),
            "batch_size / optimizer.accumulate": (
                "batch",
                config.batch_size // config.optimizer.accumulate,
            ),
        },
    )
    if config.batch_size % config.optimizer.accumulate:
        raise sharding.MeshError(
            f"batch_size = {config.batch_size} cannot be split into optimizer.accumulate = "
            f"{config.optimizer.accumulate} equal parts"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """How a model is made, judged and improved.

    Attributes:
      model: the model's shape.
      config: `config.optimizer`.
      steps: length of the run, for the learning rate's schedule.
      eos: the token that ends a document; in targets it counts documents.
      byte_lengths: codec bytes each token stands for, int32 [vocabulary].
    """

    model: ModelConfig
    config: ConfigDict
    steps: int
    eos: int
    byte_lengths: np.ndarray

    @functools.cached_property
    def _abstract(self) -> tuple[Any, Any, Any]:
        return abstract_model(self.model)

    @property
    def graph(self) -> Any:
        """The model without its weights: `nnx.merge(graph, params)` is the model."""
        return self._abstract[0]

    @property
    def axes(self) -> Any:
        """Logical axes of every weight."""
        return self._abstract[2]

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return optimizer.make(self.config, self.steps, self.axes)

    def init(self, seed: int | jax.Array) -> TrainState:
        """The state before the first step; a function of the seed alone."""
        params = nnx.to_pure_dict(nnx.state(Llama(self.model, nnx.Rngs(jax.random.key(seed)))))
        # A copy, so that weights and average can be donated one by one.
        ema = jax.tree.map(jnp.copy, params) if self.config.ema else None
        return TrainState(params, self.optimizer.init(params), ema)

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state, without allocating any of it."""
        return jax.eval_shape(self.init, 0)

    def state_shardings(self, mesh: Mesh) -> TrainState:
        """Where every array of the state lies; moments lie where their weights do."""
        params = sharding.shardings_of(mesh, self.axes)
        abstract = self.abstract_state()
        opt_state = optax.tree_utils.tree_map_params(
            self.optimizer,
            lambda _, where: where,
            abstract.opt_state,
            params,
            transform_non_params=lambda _: sharding.replicated(mesh),
        )
        return TrainState(params, opt_state, params if self.config.ema else None)

    def sums(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Sums over the places of a batch, float32 scalars.

        Returns:
          nll: negative log-likelihood in nats; z: squared log-normaliser (the z-loss);
          tokens: places that count; documents: ends of documents among them; bytes: codec bytes.
        """
        logits = nnx.merge(self.graph, params)(
            batch["tokens"], batch["segments"], batch["positions"]
        )
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
            "bytes": jnp.sum(weights * jnp.asarray(self.byte_lengths, jnp.float32)[targets]),
        }

    def gradients(self, params: Any, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
        """Gradients of the mean loss over all places of the batch, and the batch's sums.

        The divisor is fixed before the batch is split, so that any number of parts gives the
        same gradients.
        """
        total = jnp.maximum(jnp.sum(batch["weights"]), 1.0)

        def loss(params: Any, part: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
            sums = self.sums(params, part)
            return (sums["nll"] + self.config.z_loss * sums["z"]) / total, sums

        gradient = jax.grad(loss, has_aux=True)
        parts = self.config.accumulate
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

    def train_step(
        self, state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimiser step.

        If the loss or a gradient is not finite the state stays as it was, and `finite` in the
        metrics, which are the batch's sums and the gradient norm, is 0. If steps with spikes are
        skipped, `skipped` counts them from the start of the run.
        """
        gradients, metrics = self.gradients(state.params, batch)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        finite = jnp.isfinite(metrics["grad_norm"]) & jnp.isfinite(metrics["nll"])
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if self.config.ema:
            ema = optax.incremental_update(params, state.ema, 1.0 - self.config.ema)
        new = TrainState(params, opt_state, ema)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
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


def batch_shardings(mesh: Mesh) -> dict[str, Any]:
    """Where the arrays of a batch lie."""
    return dict.fromkeys(BATCH_KEYS, sharding.named(mesh, *BATCH_AXES))


def compiled(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Callable[..., Any]:
    """`jax.jit(function, **options)`, traced with `mesh` as the current one.

    The compiler gets the options of the mesh's chip, see chips.py.
    """
    known = chips.chip(mesh.devices.flat[0].device_kind)
    jitted = jax.jit(function, compiler_options=known.options if known else None, **options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return jitted(*args)

    call.jitted = jitted  # type: ignore[attr-defined]
    return call


def compile_init(recipe: Recipe, mesh: Mesh) -> Callable[[int], TrainState]:
    """seed -> a fresh state, each device making its own part only."""
    return compiled(recipe.init, mesh, out_shardings=recipe.state_shardings(mesh))


def compile_train_step(recipe: Recipe, mesh: Mesh) -> Callable[..., Any]:
    """(state, batch) -> (state, metrics); the old state's memory is given up."""
    state = recipe.state_shardings(mesh)
    return compiled(
        recipe.train_step,
        mesh,
        in_shardings=(state, batch_shardings(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def compile_eval_step(recipe: Recipe, mesh: Mesh) -> Callable[..., Any]:
    """(params, batch) -> sums."""
    return compiled(
        recipe.sums,
        mesh,
        in_shardings=(recipe.state_shardings(mesh).params, batch_shardings(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
