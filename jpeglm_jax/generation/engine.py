"""Continuous batching: a document enters a batch of fixed shape as soon as another has left it.

A generation job, the samples of a training run and the evaluations sample documents here. The host
keeps the queue; the device decodes until enough rows have finished. Each function is compiled once:
`insert` (new documents into rows), `prefill` (their prompts into the cache) and `decode` (some
steps of all rows). Every row has a position of its own, so its tokens depend on its prompt and its
number, not on its neighbours.
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

from data_pipelines.utils.seeds import check_seed
from jpeglm_jax.generation import decoding
from jpeglm_jax.generation.constraint import Constraint
from jpeglm_jax.generation.sampling import Sample, SamplingParams, sample_token
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh

# Max number of steps before the host reads the finished rows and moves the progress bar.
MAX_STEPS = 64
# Tokens of prompts in one prefill; they need about as much memory as a training row.
_PREFILL_TOKENS = 8192
# Prompts are padded to a multiple of this: attention kernels need whole blocks.
_PREFILL_BLOCK = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """The state of a batch on the device: B rows, each with one document or none.

    Attributes:
      tokens: int32 [B, T], start, prompt and sampled tokens.
      position: int32 [B], of the newest token.
      active: bool [B], whether the document is unfinished.
      keys: a random key per row.
      log_likelihood: float32 [B], of the sampled tokens.
      constraint: the constraint's state, or None.
      cache: keys and values; with guidance of 2 B rows, each conditional row followed by its
        unconditional row.
    """

    tokens: jax.Array
    position: jax.Array
    active: jax.Array
    keys: jax.Array
    log_likelihood: jax.Array
    constraint: Any
    cache: decoding.Cache


class Entry(NamedTuple):
    """New documents for some rows; the arrays have an entry for every row."""

    new: np.ndarray  # bool [B]
    tokens: np.ndarray  # int32 [B, T]
    position: np.ndarray  # int32 [B]
    number: np.ndarray  # int32 [B]
    constraint: Any


class Engine:
    """Samples documents on the mesh of the weights.

    Args:
      spec: the model without its weights.
      mesh: where its weights lie.
      sampling_params: how tokens are sampled.
      batch_size: rows; rounded up to a multiple of the parts that the mesh splits a batch into.
      seq_len: sequence length, the max length of a document with its start token.
      seed: with a document's number it decides the document; 0 <= seed < 2**32.
      eos: the token that ends a document.
      bos: the start token of a document without a label; needed for guidance.
      constraint: which tokens may come next.

    Attributes, from which `__call__` is built; a function is compiled at its first call:
      prepare_weights: params -> the weights as `decode` takes them.
      empty_state: () -> the state of a batch without documents.
      insert: (state, entry) -> the state with new documents in some rows.
      prefill: (weights, cache, tokens, rows) -> the cache with prompts; see `decoding.prefill`.
      decode: (weights, rules, state, enough) -> (state, outputs) after steps of all rows, until
        `enough` rows have finished, but at most MAX_STEPS.
      rules: the constraint on the device.
    """

    def __init__(
        self,
        spec: ModelSpec,
        mesh: Mesh,
        sampling_params: SamplingParams,
        *,
        batch_size: int,
        seq_len: int,
        seed: int,
        eos: int,
        bos: int | None = None,
        constraint: Constraint | None = None,
    ):
        if sampling_params.guidance != 1 and bos is None:
            raise ValueError("guidance needs the start token of documents without a label")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        self._parts = sharding.axis_size(mesh, "batch")
        self.batch_size = -(-batch_size // self._parts) * self._parts
        self.seq_len = seq_len
        self._spec, self._mesh, self._sampling_params = spec, mesh, sampling_params
        self._seed, self._constraint = check_seed(seed), constraint
        # On the device and an argument of the step, so that its tables are not compiled into it.
        self.rules = jax.device_put(constraint, sharding.replicated(mesh))
        self._eos, self._bos = eos, eos if bos is None else bos
        self._rows_per_document = 1 if sampling_params.guidance == 1 else 2

        where = self._state_shardings()
        weights = decoding.weight_shardings(spec, mesh)
        replicated = sharding.replicated(mesh)
        self.prepare_weights = jit_on_mesh(
            lambda params: decoding.weights(spec, params),
            mesh,
            in_shardings=(spec.param_shardings(mesh),),
            out_shardings=weights,
        )
        self.empty_state = jit_on_mesh(self._make_empty_state, mesh, out_shardings=where)
        self.insert = jit_on_mesh(
            self._insert_entry,
            mesh,
            in_shardings=(where, replicated),
            out_shardings=where,
            donate_argnums=0,
        )
        self.prefill = jit_on_mesh(
            self._prefill_prompts,
            mesh,
            in_shardings=(weights, where.cache, replicated, replicated),
            out_shardings=where.cache,
            donate_argnums=1,
        )
        self.decode = jit_on_mesh(
            self._decode_steps,
            mesh,
            in_shardings=(weights, replicated, where, replicated),
            out_shardings=(where, (replicated,) * 4),
            donate_argnums=2,
        )

    def __call__(
        self, params: Any, prompts: Sequence[np.ndarray], numbers: Sequence[int] | None = None
    ) -> Iterator[Sample]:
        """Samples a continuation of each prompt; yields the documents as they finish.

        Args:
          params: weights, on the mesh.
          prompts: integer [n] each, a start token and the tokens that follow it.
          numbers: of the documents; with the seed they decide what is sampled. Default 0, 1, ...

        Raises:
          ValueError: a prompt is empty or fills the sequence length, no valid document within it
            begins with the prompt, or the model's logits are not finite.
        """
        numbers = range(len(prompts)) if numbers is None else numbers
        for number, prompt in zip(numbers, prompts, strict=True):
            self._check(number, prompt)
        self._check_room(numbers, prompts)
        weights = self.prepare_weights(params)
        waiting = collections.deque(zip(numbers, prompts, strict=True))
        longest = max((len(prompt) for prompt in prompts), default=1)
        state = self.empty_state()
        rows: dict[int, tuple[int, int]] = {}  # row -> (number, length of the prompt)
        while waiting or rows:
            free = [row for row in range(self.batch_size) if row not in rows]
            new = {row: waiting.popleft() for row in free if waiting}
            if new:
                rows |= {row: (number, len(prompt)) for row, (number, prompt) in new.items()}
                state = self.insert(state, self.make_entry(new))
                state.cache = self._read_prompts(weights, state.cache, new, longest)
            # While documents wait, a few empty rows are worth a return to the host.
            enough = max(1, self.batch_size // 8) if waiting else self.batch_size
            state, outputs = self.decode(weights, self.rules, state, np.int32(enough))
            active, position, log_likelihood, tokens = jax.device_get(outputs)
            for row in [row for row in rows if not active[row]]:
                number, prompt_length = rows.pop(row)
                document = tokens[row, : position[row] + 1]
                if not np.isfinite(log_likelihood[row]):
                    raise ValueError(
                        f"the model's logits for document {number} are not finite, so nothing can "
                        "be sampled; expected weights that do not overflow in "
                        f"{self._spec.config.dtype}: train again or use another checkpoint"
                    )
                complete = bool(document[-1] == self._eos and len(document) > prompt_length)
                content = document[1 : len(document) - complete]
                yield Sample(number, content, complete, float(log_likelihood[row]))

    def _check(self, number: int, prompt: np.ndarray) -> None:
        if len(prompt) < 1:
            raise ValueError(f"prompt {number} is empty; expected at least a start token")
        if len(prompt) >= self.seq_len:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens with its start token; expected fewer "
                f"than the sequence length of {self.seq_len}"
            )

    def _check_room(self, numbers: Sequence[int], prompts: Sequence[np.ndarray]) -> None:
        """Refuses a prompt that no valid document within the sequence length begins with."""
        if self._constraint is None or not len(prompts):
            return
        needed = self._constraint.min_tokens_to_end(self._constraint.start(prompts))
        lengths = np.array([len(prompt) for prompt in prompts]) + np.asarray(needed)
        for row in np.flatnonzero(lengths > self.seq_len)[:1].tolist():
            raise ValueError(
                f"the shortest valid document that begins with prompt {numbers[row]} takes "
                f"{lengths[row]} positions; the sequence length is {self.seq_len}; shorten the "
                "prompt, or omit --constrain"
            )

    # On the host

    def make_entry(self, new: dict[int, tuple[int, np.ndarray]]) -> Entry:
        """New documents as `insert` takes them, from row -> (number, prompt)."""
        batch = self.batch_size
        entry = Entry(
            np.zeros(batch, bool),
            np.zeros((batch, self.seq_len), np.int32),
            np.zeros(batch, np.int32),
            np.zeros(batch, np.int32),
            None,
        )
        for row, (number, prompt) in new.items():
            entry.new[row] = True
            entry.tokens[row, : len(prompt)] = prompt
            entry.position[row] = len(prompt) - 1
            entry.number[row] = number
        if self._constraint is None:
            return entry
        states = self._constraint.start([prompt for _, prompt in new.values()])
        rows = np.array(list(new))

        def scatter(values: Any) -> np.ndarray:
            values = np.asarray(values)
            whole = np.zeros((batch, *values.shape[1:]), values.dtype)
            whole[rows] = values
            return whole

        return entry._replace(constraint=jax.tree.map(scatter, states))

    def _read_prompts(
        self, weights: Any, cache: decoding.Cache, new: dict[int, Any], longest: int
    ) -> decoding.Cache:
        """Prefills the cache with all tokens of each prompt but the last, some rows at a time.

        The shape depends on the longest prompt of the whole job, so that it is compiled once.
        """
        if longest < 2:
            return cache
        length = min(-(-(longest - 1) // _PREFILL_BLOCK) * _PREFILL_BLOCK, self.seq_len)
        max_rows = _PREFILL_TOKENS // length // self._rows_per_document
        together = min(max(1, max_rows // self._parts) * self._parts, self.batch_size)
        items = [(row, prompt) for row, (_, prompt) in new.items() if len(prompt) > 1]
        for begin in range(0, len(items), together):
            tokens = np.zeros((together, length), np.int32)
            rows = np.full(together, self.batch_size, np.int32)  # out of range: dropped
            for index, (row, prompt) in enumerate(items[begin : begin + together]):
                tokens[index, : len(prompt) - 1] = prompt[:-1]
                rows[index] = row
            cache = self.prefill(weights, cache, tokens, rows)
        return cache

    # On the device

    def _state_shardings(self) -> Any:
        rows = sharding.named(self._mesh, "batch")
        wide = sharding.named(self._mesh, "batch", None)
        shapes = jax.eval_shape(self._make_empty_state)
        constraint = jax.tree.map(
            lambda x: sharding.named(self._mesh, "batch", *[None] * (x.ndim - 1)), shapes.constraint
        )
        cache = decoding.cache_shardings(self._spec, self._mesh)
        where: Any = State
        return where(wide, rows, rows, rows, rows, constraint, cache)

    def _make_empty_state(self) -> State:
        batch = self.batch_size
        constraint = None
        if self._constraint is not None:
            constraint = jax.tree.map(
                lambda x: jnp.zeros((batch, *np.shape(x)[1:]), np.asarray(x).dtype),
                self._constraint.start([np.array([self._bos])]),
            )
        return State(
            tokens=jnp.zeros((batch, self.seq_len), jnp.int32),
            position=jnp.zeros(batch, jnp.int32),
            active=jnp.zeros(batch, bool),
            keys=self._keys(jnp.zeros(batch, jnp.int32)),
            log_likelihood=jnp.zeros(batch, jnp.float32),
            constraint=constraint,
            cache=decoding.empty_cache(self._spec, batch * self._rows_per_document, self.seq_len),
        )

    def _keys(self, numbers_B: Any) -> jax.Array:
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self._seed), numbers_B)

    def _insert_entry(self, state: State, entry: Entry) -> State:
        def choose(new: Any, old: jax.Array) -> jax.Array:
            return jnp.where(jnp.reshape(entry.new, (-1, *[1] * (old.ndim - 1))), new, old)

        return State(
            tokens=choose(entry.tokens, state.tokens),
            position=choose(entry.position, state.position),
            active=state.active | entry.new,
            keys=choose(self._keys(entry.number), state.keys),
            log_likelihood=choose(0.0, state.log_likelihood),
            constraint=jax.tree.map(choose, entry.constraint, state.constraint),
            cache=state.cache,
        )

    def _prefill_prompts(
        self, weights: Any, cache: decoding.Cache, tokens_RxP: jax.Array, rows_R: jax.Array
    ) -> decoding.Cache:
        if self._rows_per_document == 2:
            tokens_RxP = self._with_unconditional_rows(tokens_RxP)
            rows_R = jnp.stack([2 * rows_R, 2 * rows_R + 1], 1).reshape(-1)
        tokens_RxP = sharding.constrain(tokens_RxP, "batch", None)
        return decoding.prefill(self._spec, weights, tokens_RxP, rows_R, cache)

    def _with_unconditional_rows(self, tokens: jax.Array) -> jax.Array:
        """Each row followed by its unconditional row, which starts with BOS."""
        unconditional = tokens.at[:, 0].set(self._bos)
        return jnp.stack([tokens, unconditional], 1).reshape(-1, tokens.shape[1])

    def _logits(
        self, weights: Any, state: State
    ) -> tuple[jax.Array, jax.Array | None, decoding.Cache]:
        """(the model's logits, for guidance those without the label, the cache)."""
        position = state.position
        newest_B = jnp.take_along_axis(state.tokens, position[:, None], axis=1)[:, 0]
        if self._rows_per_document == 1:
            logits, cache = decoding.step(self._spec, weights, newest_B, position, state.cache)
            return logits, None, cache
        unconditional_B = jnp.where(position == 0, self._bos, newest_B)
        both = jnp.stack([newest_B, unconditional_B], 1).reshape(-1)
        positions = jnp.repeat(position, 2)
        logits, cache = decoding.step(self._spec, weights, both, positions, state.cache)
        return logits[0::2], logits[1::2], cache

    def _decode_steps(
        self, weights: Any, rules: Constraint | None, state: State, enough: jax.Array
    ) -> tuple[State, tuple[jax.Array, ...]]:
        """Some steps, until `enough` rows have finished."""
        began = jnp.sum(state.active)

        def unfinished(carry: tuple[jax.Array, State]) -> jax.Array:
            steps, state = carry
            left = jnp.sum(state.active)
            return (steps < MAX_STEPS) & (left > 0) & (began - left < enough)

        def one(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
            steps, state = carry
            return steps + 1, self._decode_step(weights, rules, state)

        _, state = jax.lax.while_loop(unfinished, one, (jnp.int32(0), state))
        return state, (state.active, state.position, state.log_likelihood, state.tokens)

    def _decode_step(self, weights: Any, rules: Constraint | None, state: State) -> State:
        model_logits, unconditional, cache = self._logits(weights, state)
        allowed = None
        if rules is not None:
            allowed = rules.allowed(state.constraint, self.seq_len - 1 - state.position)
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.position)
        logits = self._sampling_params(model_logits, unconditional, allowed)
        sampled_B = sample_token(keys, logits)
        log_prob_B = jnp.take_along_axis(model_logits, sampled_B[:, None], axis=1)[:, 0]
        log_prob_B -= jax.nn.logsumexp(model_logits, axis=-1)
        # Rows without an unfinished document do not change.
        position = state.position + state.active
        written = jnp.where(
            state.active,
            sampled_B,
            jnp.take_along_axis(state.tokens, position[:, None], axis=1)[:, 0],
        )
        constraint = state.constraint
        if rules is not None:
            constraint = jax.tree.map(
                lambda new, old: jnp.where(
                    jnp.reshape(state.active, (-1, *[1] * (old.ndim - 1))), new, old
                ),
                rules.advance(state.constraint, sampled_B),
                state.constraint,
            )
        finished = (sampled_B == self._eos) | (position == self.seq_len - 1)
        rows = jnp.arange(self.batch_size)
        return State(
            tokens=state.tokens.at[rows, position].set(written),
            position=position,
            active=state.active & ~finished,
            keys=state.keys,
            log_likelihood=state.log_likelihood + jnp.where(state.active, log_prob_B, 0.0),
            constraint=constraint,
            cache=cache,
        )
