"""Constrained decoding: masks the tokens that cannot continue a valid document.

The engine uses a `Constraint` at every step. In general it runs a state machine over tokens, see
`token_constraint`. `ByteConstraint` is the one of tokens that are strings of a codec's bytes: a
state machine over bytes defines which byte may follow, and the tokens are run through it as a trie,
so that common prefixes are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.representations.base import (
    UNREACHABLE,
    ByteMachine,
    Representation,
    TokenizedByteMachine,
)
from data_pipelines.representations.tokenizer import Tokenizer
from jpeglm_jax.generation.token_constraint import TokenConstraint

Array = Any  # numpy.ndarray or jax.Array


class Constraint(Protocol):
    """Masks the tokens that cannot continue a document. Its state has a row per row of a batch.

    It is a pytree: as an argument of a jitted function, its tables are not compiled into it.
    """

    def start(self, prompts: Sequence[np.ndarray]) -> Any:
        """The state after each prompt: a start token and the tokens that follow it, integer [n].

        On the host; a pytree of arrays [B]. Raises ValueError, naming the position, for a prompt
        that no valid document begins with.
        """

    def min_tokens_to_end(self, state: Any) -> Array:
        """Number of tokens, with the end token, within which a document can end, int32 [B].

        If that many positions remain when sampling begins, every document ends in time.
        """

    def allowed(self, state: Any, remaining_B: jax.Array) -> jax.Array:
        """Which tokens may come next, bool [B, V].

        remaining_B: int32, the remaining positions, with those of the next token and the end token.
        A token is masked if the document could not end within the positions after it. At least one
        token is allowed, unless fewer positions remain than `min_tokens_to_end`.
        """

    def advance(self, state: Any, tokens_B: jax.Array) -> Any:
        """The state after one more token of each row, int32 [B]."""


def make_constraint(
    representation: Representation, size: tuple[int, int] | None = None
) -> Constraint:
    """The constraint that makes every document of a representation valid.

    Args:
      representation: of the documents.
      size: (width, height) of the media in pixels, where the representation does not fix it.

    Raises:
      ValueError: the representation has none, or not for this size; or its tokenizer lacks a token
        for a byte, so that a valid stream could have no continuation.
    """
    machine = representation.token_machine(size)
    if isinstance(machine, TokenizedByteMachine):
        return make_byte_constraint(machine.bytes, machine.tokenizer)
    return TokenConstraint(machine, representation.vocab_size, representation.eos)


def make_byte_constraint(machine: ByteMachine, tokenizer: Tokenizer) -> ByteConstraint:
    """The constraint of tokens that are strings of bytes.

    Args:
      machine: accepts the bytes of valid documents.
      tokenizer: of the documents.

    Raises:
      ValueError: the tokenizer lacks a token for a byte, so that a valid stream could have no
        continuation.
    """
    singles = {piece for piece in tokenizer.token_bytes if len(piece) == 1}
    missing = [byte for byte in range(256) if bytes([byte]) not in singles]
    if missing:
        named = ", ".join(f"{byte:02X}" for byte in missing[:8])
        raise ValueError(
            f"the tokenizer has no token for {len(missing)} bytes ({named}); constraining "
            "documents needs one for each, as train_bpe makes them"
        )
    stages, node = _trie(tokenizer.token_bytes)
    prefix = np.zeros(tokenizer.vocab_size, bool)
    prefix[list(tokenizer.prefixes)] = True
    longest = max(map(len, tokenizer.token_bytes))
    padded = b"".join(piece.ljust(longest, b"\0") for piece in tokenizer.token_bytes)
    return ByteConstraint(
        machine,
        stages,
        node,
        np.frombuffer(padded, np.uint8).reshape(-1, longest).astype(np.int32),
        tokenizer.byte_lengths.astype(np.int32),
        prefix,
        tokenizer.eos,
    )


class ByteState(NamedTuple):
    """The state of documents in decoding.

    Attributes:
      machine: the byte machine's state, int32 arrays [B].
      begun: whether a document has any token, bool [B].
    """

    machine: Any
    begun: Array


class Stage(NamedTuple):
    """Some depths of the trie of tokens, padded to the same number of nodes.

    Attributes:
      parent: index of a node's parent in the depth above, which for the first depth is the 256
        bytes, int32 [depths, nodes].
      byte: the last byte of each node, int32 [depths, nodes].
    """

    parent: Array
    byte: Array


class ByteConstraint(NamedTuple):
    """See `make_constraint`. `min_tokens_to_end` counts one token per byte: an upper bound for BPE.

    Attributes:
      machine: of the bytes.
      stages: the trie below its first depth, the 256 bytes.
      node: of each token: the index of its last byte among these and all nodes of the stages; one
        past the last for a token without bytes, int32 [V].
      bytes: of each token, 0 after its end, int32 [V, max length].
      lengths: of the tokens in bytes, int32 [V].
      prefix: tokens without bytes that may begin a document, bool [V].
      eos: the end token.
    """

    machine: ByteMachine
    stages: tuple[Stage, ...]
    node: Array
    bytes: Array
    lengths: Array
    prefix: Array
    eos: int

    def start(self, prompts: Sequence[np.ndarray]) -> ByteState:
        """See `Constraint.start`."""
        streams = [self._stream(number, prompt) for number, prompt in enumerate(prompts)]
        state = _map(lambda value: np.full(len(streams), value, np.int32), self.machine.start())
        length = np.array([len(stream) for stream in streams], int)
        columns = np.zeros((max(length, default=0), len(streams)), np.int32)
        for row, stream in enumerate(streams):
            columns[: len(stream), row] = np.frombuffer(stream, np.uint8)
        valid = np.zeros(len(streams), int)  # bytes
        for position, column in enumerate(columns):
            state = _where(position < length, self.machine.step(state, column), state)
            valid += (position < length) & (self.machine.min_bytes_to_end(state) < UNREACHABLE)
        for number in np.flatnonzero(valid < length)[:1].tolist():
            position = int(valid[number])
            raise ValueError(
                f"prompt {number}: no valid document has {streams[number][position]:02X} for byte "
                f"{position}; expected the beginning of one of this representation and size"
            )
        begun = np.array([len(prompt) > 1 for prompt in prompts], bool)
        return ByteState(_map(lambda leaf: leaf.astype(np.int32), state), begun)

    def _stream(self, number: int, prompt: np.ndarray) -> bytes:
        """The bytes of a prompt. Raises ValueError for a token that has none."""
        tokens = np.asarray(prompt, int)[1:]
        known = (tokens >= 0) & (tokens < len(self.node))
        tokens = np.where(known, tokens, self.eos)
        lengths = np.asarray(self.lengths)[tokens]
        valid = lengths > 0
        valid[:1] |= np.asarray(self.prefix)[tokens[:1]]
        for position in np.flatnonzero(~valid)[:1].tolist():
            raise ValueError(
                f"prompt {number}: token {int(prompt[position + 1])} at position {position} after "
                "the start token stands for no bytes; expected a start token and the first tokens "
                "of a document"
            )
        table = np.asarray(self.bytes)[tokens].astype(np.uint8)
        return table[np.arange(table.shape[1]) < lengths[:, None]].tobytes()

    def min_tokens_to_end(self, state: ByteState) -> Array:
        """See `Constraint.min_tokens_to_end`."""
        return self.machine.min_bytes_to_end(state.machine) + 1

    def allowed(self, state: ByteState, remaining_B: jax.Array) -> jax.Array:
        """See `Constraint.allowed`."""
        rows = _map(lambda leaf: jnp.asarray(leaf)[:, None], state.machine)
        min_bytes = [self.machine.min_bytes_after(rows), *self._min_bytes_below(rows)]
        min_bytes.append(jnp.full_like(min_bytes[0][:, :1], UNREACHABLE))
        by_token_BxV = jnp.concatenate(min_bytes, axis=1)[:, jnp.asarray(self.node)]
        # One position for the token, one for the end.
        remaining_Bx1 = remaining_B[:, None]
        now_Bx1 = self.machine.min_bytes_to_end(rows)
        may_begin = ~state.begun[:, None] & (now_Bx1 + 2 <= remaining_Bx1)
        is_eos = jnp.arange(len(self.node)) == self.eos
        return (
            (by_token_BxV + 2 <= remaining_Bx1)
            | (may_begin & jnp.asarray(self.prefix))
            | ((now_Bx1 == 0) & is_eos)
        )

    def _min_bytes_below(self, rows: Any) -> list[jax.Array]:
        """`min_bytes_to_end` after the nodes of each stage, int32 [B, depths * nodes]."""
        found: list[jax.Array] = []
        batch = rows[0].shape[0]
        nodes = None

        def descend(nodes: Any, depth: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
            byte_W, children_W = depth
            nodes = self._broadcast(self.machine.step(nodes, byte_W), batch, byte_W)
            return _map(lambda leaf: leaf[:, children_W], nodes), self.machine.min_bytes_to_end(
                nodes
            )

        for stage in self.stages:
            parent_DxW, byte_DxW = jnp.asarray(stage.parent), jnp.asarray(stage.byte)
            if nodes is None:
                nodes = self._broadcast(
                    self.machine.step(rows, parent_DxW[0]), batch, parent_DxW[0]
                )
            else:
                nodes = _map(lambda leaf, at=parent_DxW[0]: leaf[:, at], nodes)
            # The next stage begins from the nodes of the last depth themselves.
            children = jnp.concatenate([parent_DxW[1:], jnp.arange(byte_DxW.shape[1])[None]])
            nodes, min_bytes_DxBxW = jax.lax.scan(descend, nodes, (byte_DxW, children))
            found.append(min_bytes_DxBxW.swapaxes(0, 1).reshape(batch, -1))
        return found

    def _broadcast(self, state: Any, batch: int, byte_W: jax.Array) -> Any:
        """The state with every field [B, W]."""
        return _map(lambda leaf: jnp.broadcast_to(leaf, (batch, len(byte_W))), state)

    def advance(self, state: ByteState, tokens_B: jax.Array) -> ByteState:
        """See `Constraint.advance`."""
        bytes_BxN = jnp.asarray(self.bytes)[tokens_B]
        lengths_B = jnp.asarray(self.lengths)[tokens_B]

        def one(index: jax.Array, machine: Any) -> Any:
            return _where(
                index < lengths_B, self.machine.step(machine, bytes_BxN[:, index]), machine
            )

        if bytes_BxN.shape[1] == 1:
            machine = one(jnp.int32(0), state.machine)
        else:
            machine = jax.lax.fori_loop(0, jnp.max(lengths_B), one, state.machine)
        return ByteState(machine, jnp.ones_like(state.begun))


def _trie(pieces: Sequence[bytes]) -> tuple[tuple[Stage, ...], np.ndarray]:
    """The fields `stages` and `node` of a `ByteConstraint`."""
    depths: list[list[bytes]] = []
    for length in range(2, max(map(len, pieces)) + 1):
        depths.append(sorted({piece[:length] for piece in pieces if len(piece) >= length}))
    index_of = {bytes([byte]): byte for byte in range(256)}
    above = dict(index_of)
    stages: list[Stage] = []
    count = 256
    while depths:
        # A depth of at most half the nodes begins a stage of its own, which needs less padding.
        width = len(depths[0])
        deep = next((d for d, nodes in enumerate(depths) if 2 * len(nodes) <= width), len(depths))
        parent, byte = np.zeros((2, deep, width), np.int32)
        for depth, nodes in enumerate(depths[:deep]):
            parent[depth, : len(nodes)] = [above[node[:-1]] for node in nodes]
            byte[depth, : len(nodes)] = [node[-1] for node in nodes]
            index_of |= {node: count + index for index, node in enumerate(nodes)}
            above = {node: index for index, node in enumerate(nodes)}
            count += width
        stages.append(Stage(parent, byte))
        depths = depths[deep:]
    return tuple(stages), np.array([index_of.get(piece, count) for piece in pieces], np.int32)


def _map(function: Any, state: Any) -> Any:
    """The NamedTuple with the function applied to each field."""
    return type(state)(*map(function, state))


def _where(choose: Array, new: Any, old: Any) -> Any:
    """The fields of one state or the other, row by row."""
    xp = choose.__array_namespace__()
    return type(new)(*(xp.where(choose, a, b) for a, b in zip(new, old, strict=True)))
