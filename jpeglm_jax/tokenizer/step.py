"""One step of training a tokenizer: losses, gradients, update of the network and of the codebook.

As in `training.step`, nothing here knows the mesh. The state is a `TrainState` of the same kind, so
that checkpoints are the same too: `params` holds "encoder", "decoder", "codebook" (of "vq"; no
gradient moves it) and "discriminator" (with an adversarial loss).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import representations
from data_pipelines.representations.base import Representation
from data_pipelines.representations.vq import network, quantizers
from data_pipelines.representations.vq.config import TokenizerConfig
from data_pipelines.representations.vq.network import Tokenizer
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh
from jpeglm_jax.parallel.sharding import Batch, batch_shardings
from jpeglm_jax.tokenizer import losses, perceptual
from jpeglm_jax.tokenizer.discriminator import Discriminator
from jpeglm_jax.tokenizer.images import pixels
from jpeglm_jax.tokenizer.losses import Features
from jpeglm_jax.training import optimizer
from jpeglm_jax.training.step import TrainState

_NETWORKS = ("encoder", "decoder")  # what the tokenizer's optimizer updates
_MIN_SQUARED_ERROR = 1e-2  # of 8-bit pixels; a better image counts as 68 dB
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def tokenizer_config(config: ConfigDict, representation: Representation) -> TokenizerConfig:
    """The shape of the tokenizer that a run trains.

    Args:
      config: the run's.
      representation: of the shards, raw pixels.

    Raises ValueError for a shape that cannot be.
    """
    assert representation.fixed_size is not None
    c, q = config.tokenizer, config.quantizer
    fsq = q.name == "fsq"
    return TokenizerConfig(
        size=representation.fixed_size[0],
        mode=representation.mode,
        patch=c.patch,
        widths=tuple(c.widths),
        blocks=c.blocks,
        code_dim=0 if fsq else q.code_dim,
        quantizer=q.name,
        codes=0 if fsq else q.codes,
        levels=tuple(q.levels) if fsq else (),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizerStep:
    """How a tokenizer is made, judged and improved.

    Attributes:
      tokenizer: the functions of the tokenizer.
      config: the run's: the sections quantizer, loss and optimizer.
      features: of the perceptual loss; None without one.
      dtype: of the networks' computations.
    """

    tokenizer: Tokenizer
    config: ConfigDict
    features: Features | None
    dtype: Any

    # If a step is not finite.
    advice: ClassVar[str] = "Lower optimizer.learning_rate, or the weights of the losses."

    # The state

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return self._optimizer(_NETWORKS, self.config.steps)

    @functools.cached_property
    def discriminator_optimizer(self) -> optax.GradientTransformation:
        """As the tokenizer's; its schedule is that of the steps in which it learns."""
        return self._optimizer(("discriminator",), self.config.steps - self.adversarial_start)

    def _optimizer(self, names: tuple[str, ...], steps: int) -> optax.GradientTransformation:
        params = jax.eval_shape(self._init_params, 0)
        params = {name: params[name] for name in names}
        axes = jax.tree.map(lambda x: ("norm",) if x.ndim < 2 else (), params)
        return optimizer.make(self.config.optimizer, steps, axes)

    @property
    def adversarial_start(self) -> int:
        """The step from which the adversarial loss counts; the length of the run if never."""
        loss = self.config.loss.adversarial
        return int(loss.start * self.config.steps) if loss.weight else self.config.steps

    @property
    def uses_discriminator(self) -> bool:
        return self.adversarial_start < self.config.steps

    @functools.cached_property
    def _discriminator(self) -> tuple[Any, Any]:
        return nnx.split(nnx.eval_shape(lambda: self._new_discriminator(jax.random.key(0))))

    def _new_discriminator(self, key: jax.Array) -> Discriminator:
        width, channels = self.config.loss.adversarial.width, self.tokenizer.config.channels
        return Discriminator(channels, width, nnx.Rngs(key), self.dtype)

    def _init_params(self, seed: int | jax.Array) -> dict[str, Any]:
        ours, theirs = jax.random.split(jax.random.key(seed))
        params = self.tokenizer.init(ours)
        if self.uses_discriminator:
            state = nnx.state(self._new_discriminator(theirs))
            params["discriminator"] = nnx.to_pure_dict(state)
        return params

    def init(self, seed: int | jax.Array) -> TrainState:
        """The state before the first step; a function of the seed alone."""
        params = self._init_params(seed)
        opt_state = {"tokenizer": self.optimizer.init(_only(params, _NETWORKS))}
        if self.uses_discriminator:
            theirs = _only(params, ("discriminator",))
            opt_state["discriminator"] = self.discriminator_optimizer.init(theirs)
        ema = jax.tree.map(jnp.copy, self.exported(params)) if self.config.optimizer.ema else None
        return TrainState(params, opt_state, ema, jnp.array(True))

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state, without allocating any of it."""
        return jax.eval_shape(self.init, 0)

    def state_shardings(self, mesh: Mesh) -> TrainState:
        """Where every array of the state lies: whole on every device."""
        return jax.tree.map(lambda _: sharding.replicated(mesh), self.abstract_state())

    def exported(self, params: Any) -> dict[str, Any]:
        """The part of the weights that is the tokenizer."""
        return {name: params[name] for name in params if name != "discriminator"}

    @functools.cached_property
    def num_parameters(self) -> int:
        """Of the tokenizer."""
        params = self.exported(self.abstract_state().params)
        return sum(math.prod(x.shape) for x in jax.tree.leaves(_only(params, _NETWORKS)))

    # Losses

    def reconstruct(self, params: Any, images: jax.Array) -> tuple[jax.Array, ...]:
        """Images through the tokenizer, with gradients to encoder and decoder.

        Args:
          params: weights.
          images: float32 [B, size, size, C], -1 to 1.

        Returns:
          reconstructions as the images; latents, float32 [B, grid, grid, D]; their codes, int32
          [B, grid, grid]; quantised values as the latents.
        """
        tokenizer = self.tokenizer
        latents = tokenizer.latents(params, images)
        held = jax.lax.stop_gradient
        codes = tokenizer.codes(held(params), held(latents))
        if tokenizer.config.quantizer == "fsq":
            return tokenizer.pixels(params, latents), latents, codes, latents
        quantized = held(tokenizer.values(params, codes))
        passed = quantizers.PASS_GRADIENT[self.config.quantizer.gradient](latents, quantized)
        return tokenizer.pixels(params, passed), latents, codes, quantized

    def loss(
        self, networks: Any, params: Any, batch: Batch, adversarial: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The tokenizer's loss, and by name its parts, the latents, codes and reconstructions."""
        config = self.config
        shown, weights = pixels(batch, self.tokenizer.config)
        images = network.to_unit(shown)
        made, latents, codes, quantized = self.reconstruct({**params, **networks}, images)
        parts = {
            "pixel_loss": losses.mean(losses.PIXELS[config.loss.pixels](images, made), weights)
        }
        total = parts["pixel_loss"]
        if self.tokenizer.config.quantizer == "vq":
            distance = jnp.sum(jnp.square(latents - quantized), axis=-1)
            parts["commitment"] = losses.mean(jnp.mean(distance, axis=(1, 2)), weights)
            total += config.quantizer.commitment * parts["commitment"]
        if self.features is not None:
            distance = losses.perceptual(self.features, images, made)
            parts["perceptual"] = losses.mean(distance, weights)
            total += config.loss.perceptual.weight * parts["perceptual"]
        if adversarial:
            verdicts = self.verdicts(params["discriminator"], made)
            parts["adversarial"] = losses.mean(losses.deceive(verdicts), weights)
            total += config.loss.adversarial.weight * parts["adversarial"]
        found = {"latents": latents, "codes": codes, "images": images, "made": made}
        return total, {"parts": parts | {"total_loss": total}, "weights": weights, **found}

    def verdicts(self, params: Any, images: jax.Array) -> jax.Array:
        """The output of the discriminator, see `Discriminator`."""
        return nnx.merge(self._discriminator[0], params)(images)

    # The step

    def update(
        self, state: TrainState, batch: Batch, *, adversarial: bool
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step of the tokenizer and, if `adversarial`, one of the discriminator.

        If the loss or a gradient is not finite, the weights stay as they are, in this step and in
        all that follow; see `TrainStep.update`.

        Returns:
          The new state, and metrics: the parts of the loss, `grad_norm`, `perplexity` of the codes
          of the batch, `restarts` of codes, and `finite` (0 or 1).
        """
        params, config = dict(state.params), self.config
        networks = _only(params, _NETWORKS)
        gradient = jax.grad(self.loss, has_aux=True)
        gradients, found = gradient(networks, params, batch, adversarial)
        metrics = found["parts"]
        metrics["grad_norm"] = optax.tree.norm(gradients)
        finite = (
            jnp.isfinite(metrics["grad_norm"]) & jnp.isfinite(metrics["total_loss"]) & state.finite
        )
        opt_state = dict(state.opt_state)
        updates, opt_state["tokenizer"] = self.optimizer.update(
            gradients, state.opt_state["tokenizer"], networks
        )
        params |= optax.apply_updates(networks, updates)
        step = optimizer.steps_taken(opt_state["tokenizer"])
        weights, codes = found["weights"], found["codes"]
        weights_N = jnp.repeat(weights, codes[0].size)
        used = jax.nn.one_hot(codes.reshape(-1), self.tokenizer.config.num_codes)
        metrics["perplexity"] = perplexity(jnp.sum(used * weights_N[:, None], axis=0))
        if "codebook" in params:
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            after, metrics["restarts"] = quantizers.update_codebook(
                quantizers.Codebook(**params["codebook"]),
                found["latents"].reshape(codes.size, -1),
                codes.reshape(-1),
                weights_N,
                key,
                # As the average of the weights: codes that begin unused are soon restarted.
                decay=jnp.minimum(config.quantizer.ema_decay, (1 + step) / (10 + step)),
                restart_below=config.quantizer.restart_below,
            )
            params["codebook"] = after._asdict()
        if adversarial:
            theirs, opt_state["discriminator"], more = self._improve_discriminator(state, found)
            params |= theirs
            metrics |= more
            finite &= jnp.isfinite(more["discriminator"])
        ema = state.ema
        if config.optimizer.ema:
            decay = optimizer.ema_decay(config.optimizer, step)
            ema = optax.incremental_update(self.exported(params), state.ema, 1.0 - decay)
        new = TrainState(params, opt_state, ema, finite)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        new.finite = finite
        return new, metrics | {"finite": finite.astype(jnp.float32)}

    def _improve_discriminator(
        self, state: TrainState, found: dict[str, Any]
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """(weights of the discriminator, its optimiser's state, metrics) after the step."""
        images, made = found["images"], jax.lax.stop_gradient(found["made"])

        def loss(theirs: Any) -> jax.Array:
            real, fake = (self.verdicts(theirs["discriminator"], x) for x in (images, made))
            return losses.mean(losses.hinge(real, fake), found["weights"])

        theirs = _only(state.params, ("discriminator",))
        value, gradients = jax.value_and_grad(loss)(theirs)
        updates, opt_state = self.discriminator_optimizer.update(
            gradients, state.opt_state["discriminator"], theirs
        )
        return optax.apply_updates(theirs, updates), opt_state, {"discriminator": value}

    def evaluate(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Sums over the images of a batch.

        Returns:
          images; pixel_loss; psnr, in dB of 8-bit pixels; code_counts [num_codes], how often each
          code is used.
        """
        shown, weights = pixels(batch, self.tokenizer.config)
        images = network.to_unit(shown)
        made, _, codes, _ = self.reconstruct(params, images)
        error = network.to_bytes(made).astype(jnp.float32) - shown
        squared = jnp.maximum(jnp.mean(jnp.square(error), axis=(1, 2, 3)), _MIN_SQUARED_ERROR)
        used = jax.nn.one_hot(codes.reshape(len(codes), -1), self.tokenizer.config.num_codes)
        return {
            "images": jnp.sum(weights),
            "pixel_loss": jnp.sum(losses.PIXELS[self.config.loss.pixels](images, made) * weights),
            "psnr": jnp.sum(10 * jnp.log10(255**2 / squared) * weights),
            "code_counts": jnp.einsum("bnk,b->k", used, weights),
        }

    def shown(self, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Images of a batch and their reconstructions, uint8 [B, size, size, C]."""
        images, _ = pixels(batch, self.tokenizer.config)
        return images, network.to_bytes(self.reconstruct(params, network.to_unit(images))[0])

    def not_finite(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """For each weight, by its path: how many entries of its gradient are not finite."""
        networks = _only(params, _NETWORKS)
        adversarial = self.uses_discriminator
        gradients, _ = jax.grad(self.loss, has_aux=True)(networks, params, batch, adversarial)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): jnp.sum(~jnp.isfinite(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        }


def _only(params: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: params[name] for name in names}


def perplexity(counts: jax.Array) -> jax.Array:
    """The exponential of the entropy of how often each code is used; 1 to the number of codes."""
    share = counts / jnp.maximum(jnp.sum(counts), 1.0)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


def make_step(config: ConfigDict, shape: TokenizerConfig, platform: str) -> TokenizerStep:
    """The step of a run.

    Args:
      config: the run's.
      shape: see `tokenizer_config`.
      platform: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: a switch that does not exist, or weights of the perceptual loss that cannot be
        used.
    """
    loss, q = config.loss, config.quantizer
    choices: dict[str, tuple[str, Collection[str]]] = {
        "loss.pixels": (loss.pixels, losses.PIXELS),
        "quantizer.gradient": (q.gradient, quantizers.PASS_GRADIENT),
        "tokenizer.dtype": (config.tokenizer.dtype, ("auto", *_DTYPES)),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    if q.name == "fsq" and q.gradient != "straight_through":
        raise ValueError(
            f'quantizer.gradient is {q.gradient!r}, which fsq has not; set it to "straight_through"'
        )
    auto = "float32" if platform == "cpu" else "bfloat16"
    dtype = _DTYPES[auto if config.tokenizer.dtype == "auto" else config.tokenizer.dtype]
    features = None
    if loss.perceptual.weight:
        features = perceptual.load(loss.perceptual.features, loss.perceptual.weights)
    return TokenizerStep(Tokenizer(shape, dtype), config, features, dtype)


def step_of(config: ConfigDict) -> TokenizerStep:
    """The step that a configuration describes, without its data; see `make_step`."""
    pixels = representations.make(**config.representation)
    return make_step(config, tokenizer_config(config, pixels), jax.default_backend())


def compile_init(step: TokenizerStep, mesh: Mesh) -> Callable[..., TrainState]:
    """seed -> a fresh state."""
    return jit_on_mesh(step.init, mesh, once=True, out_shardings=step.state_shardings(mesh))


def compile_update(step: TokenizerStep, mesh: Mesh, *, adversarial: bool) -> Callable[..., Any]:
    """(state, batch) -> (state, metrics); the old state's memory is given up."""
    state = step.state_shardings(mesh)
    return jit_on_mesh(
        functools.partial(step.update, adversarial=adversarial),
        mesh,
        in_shardings=(state, batch_shardings(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def compile_on_batch(
    function: Callable[..., Any], step: TokenizerStep, mesh: Mesh
) -> Callable[..., Any]:
    """(the tokenizer's weights, batch) -> `function` of both, whole on every device."""
    weights = step.exported(step.state_shardings(mesh).params)
    return jit_on_mesh(
        function,
        mesh,
        in_shardings=(weights, batch_shardings(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
