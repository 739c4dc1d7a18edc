"""Continuous batching: documents enter a batch of fixed shape as others leave it.

The host keeps the queue; the device draws until enough rows have finished to be worth a look. Two
functions are compiled, once each: `_enter` (new documents into rows, with the beginnings of long
prompts read at once) and `_advance` (some steps of all rows). Every row has a place of its own, so
what it draws depends on its prompt and its number, not on its neighbours.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jpeglm_jax.generation import decoding
from jpeglm_jax.generation.constraint import Constraint
from jpeglm_jax.generation.sampling import Sample, SamplingParams, sample_token
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh

# Steps between two looks at what has finished, at most: so much the progress bar may lag.
_STEPS = 64
# Tokens of prompts that are read at once; what they need in memory is like that of a training row.
_PREFILL_TOKENS = 8192
# Prompts are filled up to a multiple of this: attention kernels want whole blocks.
_PREFILL_BLOCK = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """Everything of a batch, on the device; B rows, each holding one document or none.

    Attributes:
      tokens: int32 [B, T], start, prompt and what was drawn.
      place: int32 [B], of the newest token.
      active: bool [B], whether the document is unfinished.
      keys: a random key a row.
      likelihood: float32 [B], of what was drawn.
      constraint: the constraint's state, or None.
      cache: keys and values; with guidance of 2 B rows, each document's twin without a label
        right after it.
    """

    tokens: jax.Array
    place: jax.Array
    active: jax.Array
    keys: jax.Array
    likelihood: jax.Array
    constraint: Any
    cache: decoding.Cache


class _Entry(NamedTuple):
    """New documents for some rows; the arrays have an entry for every row."""

    fresh: np.ndarray  # bool [B]
    tokens: np.ndarray  # int32 [B, T]
    place: np.ndarray  # int32 [B]
    number: np.ndarray  # int32 [B]
    constraint: Any


class Engine:
    """Draws documents on the mesh of the weights.

    Args:
      spec: the model without its weights.
      mesh: where it lies.
      sampling_params: how tokens are drawn.
      batch_size: rows; rounded up to what the mesh divides.
      length: the most places of a document with its start.
      seed: with a document's number it decides what is drawn.
      eos: the token that ends a document.
      bos: the start token of a document without a label; needed for guidance.
      constraint: which tokens may come next.
    """

    def __init__(
        self,
        spec: ModelSpec,
        mesh: Mesh,
        sampling_params: SamplingParams,
        *,
        batch_size: int,
        length: int,
        seed: int,
        eos: int,
        bos: int | None = None,
        constraint: Constraint | None = None,
    ):
        if sampling_params.guidance != 1 and bos is None:
            raise ValueError("guidance needs the start token of documents without a label")
        self._parts = sharding.axis_size(mesh, "batch")
        self.batch_size = -(-batch_size // self._parts) * self._parts
        self.length = length
        self._spec, self._mesh, self._sampling_params = spec, mesh, sampling_params
        self._seed, self._constraint = seed, constraint
        # On the device and an argument of the step, so that its tables are not compiled into it.
        self._rules = jax.device_put(constraint, sharding.replicated(mesh))
        self._eos, self._bos = eos, eos if bos is None else bos
        self._twins = 1 if sampling_params.guidance == 1 else 2

        where = self._state_shardings()
        weights = decoding.weight_shardings(spec, mesh)
        replicated = sharding.replicated(mesh)
        self._weights = jit_on_mesh(
            lambda params: decoding.weights(spec, params),
            mesh,
            in_shardings=(spec.param_shardings(mesh),),
            out_shardings=weights,
        )
        self._empty = jit_on_mesh(self._empty_state, mesh, out_shardings=where)
        self._enter = jit_on_mesh(
            self._entered,
            mesh,
            in_shardings=(where, replicated),
            out_shardings=where,
            donate_argnums=0,
        )
        self._read = jit_on_mesh(
            self._with_prompts,
            mesh,
            in_shardings=(weights, where.cache, replicated, replicated),
            out_shardings=where.cache,
            donate_argnums=1,
        )
        self._advance = jit_on_mesh(
            self._advanced,
            mesh,
            in_shardings=(weights, replicated, where, replicated),
            out_shardings=(where, (replicated,) * 4),
            donate_argnums=2,
        )

    def __call__(
        self, params: Any, prompts: Sequence[np.ndarray], numbers: Sequence[int] | None = None
    ) -> Iterator[Sample]:
        """Continues each prompt; yields the documents as they finish.

        Args:
          params: weights, on the mesh.
          prompts: integer arrays, each a start token and the tokens given after it.
          numbers: of each document, which with the seed decides what is drawn; default 0, 1, ...

        Raises:
          ValueError: a prompt is empty, leaves no room to continue, or is none that a valid
            document begins with.
        """
        numbers = range(len(prompts)) if numbers is None else numbers
        for number, prompt in zip(numbers, prompts, strict=True):
            self._check(number, prompt)
        self._check_room(numbers, prompts)
        weights = self._weights(params)
        waiting = collections.deque(zip(numbers, prompts, strict=True))
        longest = max((len(prompt) for prompt in prompts), default=1)
        state = self._empty()
        rows: dict[int, tuple[int, int]] = {}  # row -> (number, places of the prompt)
        while waiting or rows:
            free = [row for row in range(self.batch_size) if row not in rows]
            new = {row: waiting.popleft() for row in free if waiting}
            if new:
                rows |= {row: (number, len(prompt)) for row, (number, prompt) in new.items()}
                state = self._enter(state, self._entry(new))
                state.cache = self._read_prompts(weights, state.cache, new, longest)
            # While others wait, a few empty rows are worth an interruption.
            enough = max(1, self.batch_size // 8) if waiting else self.batch_size
            state, seen = self._advance(weights, self._rules, state, np.int32(enough))
            active, place, likelihood, tokens = jax.device_get(seen)
            for row in [row for row in rows if not active[row]]:
                number, given = rows.pop(row)
                drawn = tokens[row, : place[row] + 1]
                complete = bool(drawn[-1] == self._eos and len(drawn) > given)
                content = drawn[1 : len(drawn) - complete].astype(np.uint16)
                yield Sample(number, content, complete, float(likelihood[row]))

    def _check(self, number: int, prompt: np.ndarray) -> None:
        if len(prompt) < 1:
            raise ValueError(f"prompt {number} is empty; expected a start token at least")
        if len(prompt) >= self.length:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens (its start included) leaves no room in "
                f"{self.length} places; raise the length or shorten the prompt"
            )

    def _check_room(self, numbers: Sequence[int], prompts: Sequence[np.ndarray]) -> None:
        """Refuses prompts after which no valid document ends within the length."""
        if self._constraint is None or not len(prompts):
            return
        needed = self._constraint.needed(self._constraint.start(prompts))
        places = np.array([len(prompt) for prompt in prompts]) + np.asarray(needed)
        for row in np.flatnonzero(places > self.length)[:1].tolist():
            raise ValueError(
                f"the shortest valid document after prompt {numbers[row]} takes {places[row]} "
                f"places, more than the {self.length} there are; raise the length, or sample "
                "without --constrain"
            )

    # What the host prepares

    def _entry(self, new: dict[int, tuple[int, np.ndarray]]) -> _Entry:
        batch = self.batch_size
        entry = _Entry(
            np.zeros(batch, bool),
            np.zeros((batch, self.length), np.int32),
            np.zeros(batch, np.int32),
            np.zeros(batch, np.int32),
            None,
        )
        for row, (number, prompt) in new.items():
            entry.fresh[row] = True
            entry.tokens[row, : len(prompt)] = prompt
            entry.place[row] = len(prompt) - 1
            entry.number[row] = number
        if self._constraint is None:
            return entry
        started = self._constraint.start([prompt for _, prompt in new.values()])
        rows = np.array(list(new))

        def spread(values: Any) -> np.ndarray:
            values = np.asarray(values)
            whole = np.zeros((batch, *values.shape[1:]), values.dtype)
            whole[rows] = values
            return whole

        return entry._replace(constraint=jax.tree.map(spread, started))

    def _read_prompts(
        self, weights: Any, cache: decoding.Cache, new: dict[int, Any], longest: int
    ) -> decoding.Cache:
        """Reads all of each prompt but its last token, some rows at a time.

        The shape depends on the longest prompt of the whole job, so that there is one compilation.
        """
        if longest < 2:
            return cache
        length = min(-(-(longest - 1) // _PREFILL_BLOCK) * _PREFILL_BLOCK, self.length)
        together = max(1, _PREFILL_TOKENS // length // self._twins // self._parts) * self._parts
        together = min(together, self.batch_size)
        items = [(row, prompt) for row, (_, prompt) in new.items() if len(prompt) > 1]
        for begin in range(0, len(items), together):
            tokens = np.zeros((together, length), np.int32)
            rows = np.full(together, self.batch_size, np.int32)  # past the last: dropped
            for place, (row, prompt) in enumerate(items[begin : begin + together]):
                tokens[place, : len(prompt) - 1] = prompt[:-1]
                rows[place] = row
            cache = self._read(weights, cache, tokens, rows)
        return cache

    # What the device does

    def _state_shardings(self) -> Any:
        rows = sharding.named(self._mesh, "batch")
        wide = sharding.named(self._mesh, "batch", None)
        shapes = jax.eval_shape(self._empty_state)
        constraint = jax.tree.map(
            lambda x: sharding.named(self._mesh, "batch", *[None] * (x.ndim - 1)), shapes.constraint
        )
        cache = decoding.cache_shardings(self._spec, self._mesh)
        where: Any = State
        return where(wide, rows, rows, rows, rows, constraint, cache)

    def _empty_state(self) -> State:
        batch = self.batch_size
        constraint = None
        if self._constraint is not None:
            constraint = jax.tree.map(
                lambda x: jnp.zeros((batch, *np.shape(x)[1:]), np.asarray(x).dtype),
                self._constraint.start([np.array([self._bos])]),
            )
        return State(
            tokens=jnp.zeros((batch, self.length), jnp.int32),
            place=jnp.zeros(batch, jnp.int32),
            active=jnp.zeros(batch, bool),
            keys=self._keys(jnp.zeros(batch, jnp.int32)),
            likelihood=jnp.zeros(batch, jnp.float32),
            constraint=constraint,
            cache=decoding.empty_cache(self._spec, batch * self._twins, self.length),
        )

    def _keys(self, numbers_B: Any) -> jax.Array:
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self._seed), numbers_B)

    def _entered(self, state: State, entry: _Entry) -> State:
        def choose(new: Any, old: jax.Array) -> jax.Array:
            fresh = jnp.reshape(entry.fresh, (-1, *[1] * (old.ndim - 1)))
            return jnp.where(fresh, new, old)

        return State(
            tokens=choose(entry.tokens, state.tokens),
            place=choose(entry.place, state.place),
            active=state.active | entry.fresh,
            keys=choose(self._keys(entry.number), state.keys),
            likelihood=choose(0.0, state.likelihood),
            constraint=jax.tree.map(choose, entry.constraint, state.constraint),
            cache=state.cache,
        )

    def _with_prompts(
        self, weights: Any, cache: decoding.Cache, tokens_RxP: jax.Array, rows_R: jax.Array
    ) -> decoding.Cache:
        if self._twins == 2:
            tokens_RxP = self._with_twins(tokens_RxP)
            rows_R = jnp.stack([2 * rows_R, 2 * rows_R + 1], 1).reshape(-1)
        tokens_RxP = sharding.constrain(tokens_RxP, "batch", None)
        return decoding.prefill(self._spec, weights, tokens_RxP, rows_R, cache)

    def _with_twins(self, tokens: jax.Array) -> jax.Array:
        """Each row followed by its twin, which starts without a label."""
        twins = tokens.at[:, 0].set(self._bos)
        return jnp.stack([tokens, twins], 1).reshape(-1, tokens.shape[1])

    def _logits(self, weights: Any, state: State) -> tuple[jax.Array, jax.Array, decoding.Cache]:
        """(the model's own, to draw from, the cache)."""
        newest_B = jnp.take_along_axis(state.tokens, state.place[:, None], axis=1)[:, 0]
        if self._twins == 1:
            logits, cache = decoding.step(self._spec, weights, newest_B, state.place, state.cache)
            return logits, logits, cache
        twin_B = jnp.where(state.place == 0, self._bos, newest_B)
        both = jnp.stack([newest_B, twin_B], 1).reshape(-1)
        places = jnp.repeat(state.place, 2)
        logits, cache = decoding.step(self._spec, weights, both, places, state.cache)
        given, plain = logits[0::2], logits[1::2]
        return given, plain + self._sampling_params.guidance * (given - plain), cache

    def _advanced(
        self, weights: Any, rules: Constraint | None, state: State, enough: jax.Array
    ) -> tuple[State, tuple[jax.Array, ...]]:
        """Some steps, until `enough` rows have finished."""
        began = jnp.sum(state.active)

        def unfinished(carry: tuple[jax.Array, State]) -> jax.Array:
            steps, state = carry
            left = jnp.sum(state.active)
            return (steps < _STEPS) & (left > 0) & (began - left < enough)

        def one(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
            steps, state = carry
            return steps + 1, self._stepped(weights, rules, state)

        _, state = jax.lax.while_loop(unfinished, one, (jnp.int32(0), state))
        return state, (state.active, state.place, state.likelihood, state.tokens)

    def _stepped(self, weights: Any, rules: Constraint | None, state: State) -> State:
        own, logits, cache = self._logits(weights, state)
        if rules is not None:
            allowed = rules.allowed(state.constraint, self.length - 1 - state.place)
            logits = jnp.where(allowed, logits, -jnp.inf)
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.place)
        drawn_B = sample_token(keys, self._sampling_params(logits))
        gained_B = jnp.take_along_axis(own, drawn_B[:, None], axis=1)[:, 0]
        gained_B -= jax.nn.logsumexp(own, axis=-1)
        # Rows without an unfinished document stay as they are.
        place = state.place + state.active
        written = jnp.where(
            state.active,
            drawn_B,
            jnp.take_along_axis(state.tokens, place[:, None], axis=1)[:, 0],
        )
        constraint = state.constraint
        if rules is not None:
            constraint = jax.tree.map(
                lambda new, old: jnp.where(
                    jnp.reshape(state.active, (-1, *[1] * (old.ndim - 1))), new, old
                ),
                rules.advance(state.constraint, drawn_B),
                state.constraint,
            )
        over = (drawn_B == self._eos) | (place == self.length - 1)
        rows = jnp.arange(self.batch_size)
        return State(
            tokens=state.tokens.at[rows, place].set(written),
            place=place,
            active=state.active & ~over,
            keys=state.keys,
            likelihood=state.likelihood + jnp.where(state.active, gained_B, 0.0),
            constraint=constraint,
            cache=cache,
        )
