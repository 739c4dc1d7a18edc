"""Drawing documents from a model: a key-value cache, filtered sampling, one compilation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.representations.base import Representation
from jpeglm_jax import sharding
from jpeglm_jax.step import Recipe, compiled


@dataclasses.dataclass(frozen=True)
class Filter:
    """How a token is drawn from logits.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among the k likeliest; 0: among all.
      top_p: draw among the likeliest that together reach this probability; 1: among all
        (Holtzman et al. 2020).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 1 or more, or 0 for no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected more than 0 and at most 1")

    def __call__(self, logits_BxV: jax.Array) -> jax.Array:
        """float32 [B, V] -> logits to draw from, where what is filtered out is -inf."""
        logits = logits_BxV.astype(jnp.float32)
        if self.temperature == 0:
            best = logits == jnp.max(logits, axis=-1, keepdims=True)
            return jnp.where(best, 0.0, -jnp.inf)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            probs = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probs, axis=-1) - probs
            # The likeliest is always kept: nothing comes before it.
            least = jnp.min(jnp.where(before < self.top_p, ordered, jnp.inf), axis=-1)
            logits = jnp.where(logits < least[:, None], -jnp.inf, logits)
        return logits


@dataclasses.dataclass(frozen=True)
class Sample:
    """One drawn document.

    Attributes:
      tokens: uint16 [n], without start and end.
      complete: the model wrote the end itself; otherwise the length limit cut it off.
      log_likelihood: of what was drawn (the prompt's tokens aside), in nats, under the model as
        it is: before temperature and filters.
    """

    tokens: np.ndarray
    complete: bool
    log_likelihood: float


def label_prompts(representation: Representation, labels: Sequence[int]) -> list[np.ndarray]:
    """The prompt of a whole document for each label; -1 is none.

    Raises ValueError for a label that the representation has no token for.
    """
    return [
        np.array([representation.bos if label < 0 else representation.label_token(label)])
        for label in labels
    ]


def every_label(representation: Representation, num: int) -> list[int]:
    """`num` labels, each in turn; -1 (none) throughout if there are no labels."""
    count = representation.num_labels
    return [n % count if count else -1 for n in range(num)]


def draw(
    recipe: Recipe, choose: Filter, length: int, params: Any, prompts_BxT: jax.Array, keys_B: Any
) -> tuple[jax.Array, jax.Array]:
    """Continues prompts, all at the same place; traced by jit.

    Args:
      recipe: which model.
      choose: how tokens are drawn.
      length: T, the most places of a document with its start.
      params: weights.
      prompts_BxT: int32, each row a start token, the tokens that are given, and -1 after them.
      keys_B: a random key a row: what a row draws depends on its key and prompt, not on the
        other rows.

    Returns:
      int32 [B, T], prompts with what was drawn, and -1 after the end token; float32 [B], the
      log-likelihood of what was drawn.
    """
    model = nnx.merge(recipe.graph, params)
    batch = prompts_BxT.shape[0]

    def unfinished(state: Any) -> jax.Array:
        place, _, done_B, _, _ = state
        return (place < length - 1) & ~jnp.all(done_B)

    def advance(state: Any) -> Any:
        place, tokens_BxT, done_B, likelihood_B, cache = state
        # A row that is done goes on with any valid token; nothing of it is kept.
        logits, cache = model.step(jnp.maximum(tokens_BxT[:, place], 0), place, cache)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, place)
        drawn_B = jax.vmap(jax.random.categorical)(step_keys, choose(logits)).astype(jnp.int32)
        given_B = prompts_BxT[:, place + 1]
        next_B = jnp.where(given_B >= 0, given_B, drawn_B)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        gained_B = jnp.take_along_axis(log_probs, next_B[:, None], axis=-1)[:, 0]
        likelihood_B += jnp.where(done_B | (given_B >= 0), 0.0, gained_B)
        tokens_BxT = tokens_BxT.at[:, place + 1].set(jnp.where(done_B, -1, next_B))
        done_B |= next_B == recipe.eos
        return place + 1, tokens_BxT, done_B, likelihood_B, cache

    start = (
        jnp.int32(0),
        prompts_BxT,
        prompts_BxT[:, 0] < 0,  # a row without a prompt only fills the batch
        jnp.zeros(batch, jnp.float32),
        model.empty_cache(batch, length),
    )
    _, tokens_BxT, _, likelihood_B, _ = jax.lax.while_loop(unfinished, advance, start)
    return tokens_BxT, likelihood_B


class Sampler:
    """Draws documents in batches of one compiled shape, on the mesh of the weights.

    Args:
      recipe: which model.
      mesh: where it lies.
      choose: how tokens are drawn.
      batch_size: documents drawn together; rounded up to what the mesh divides.
      length: the most places of a document with its start.
      seed: with a document's number it decides what is drawn.
    """

    def __init__(
        self, recipe: Recipe, mesh: Mesh, choose: Filter, *, batch_size: int, length: int, seed: int
    ):
        parts = sharding.axis_size(mesh, "batch")
        self.batch_size = -(-batch_size // parts) * parts
        self._eos, self._length, self._seed = recipe.eos, length, seed
        rows = sharding.named(mesh, "batch", None)
        self._place: Callable[[Any], jax.Array] = functools.partial(jax.device_put, device=rows)
        self._draw = compiled(
            functools.partial(draw, recipe, choose, length),
            mesh,
            in_shardings=(
                recipe.state_shardings(mesh).params,
                rows,
                sharding.named(mesh, "batch"),
            ),
            out_shardings=sharding.replicated(mesh),
        )

    def __call__(
        self, params: Any, prompts: Sequence[np.ndarray], first: int = 0
    ) -> Iterator[Sample]:
        """Continues each prompt; yields the documents in order.

        Args:
          params: weights, on the mesh.
          prompts: integer arrays, each a start token and the tokens given after it.
          first: number of the first document, which with the seed decides what is drawn.

        Raises:
          ValueError: a prompt leaves no room to continue.
        """
        for begin in range(0, len(prompts), self.batch_size):
            yield from self._batch(params, prompts[begin : begin + self.batch_size], first + begin)

    def _batch(self, params: Any, prompts: Sequence[np.ndarray], first: int) -> Iterator[Sample]:
        table = np.full((self.batch_size, self._length), -1, np.int32)
        for row, prompt in zip(table, prompts, strict=False):
            if len(prompt) >= self._length:
                raise ValueError(
                    f"a prompt of {len(prompt)} tokens (its start included) leaves no room in "
                    f"{self._length} places; raise the length or shorten the prompt"
                )
            row[: len(prompt)] = prompt
        numbers = jnp.arange(first, first + self.batch_size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self._seed), numbers)
        tokens, likelihood = jax.device_get(self._draw(params, self._place(table), keys))
        for row, prompt, value in zip(tokens, prompts, likelihood, strict=False):
            ends = np.flatnonzero(row[len(prompt) :] == self._eos)
            end = len(prompt) + ends[0] if ends.size else len(row)
            yield Sample(row[1:end].astype(np.uint16), bool(ends.size), float(value))
