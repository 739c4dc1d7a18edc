"""Documents coded with a model's own probabilities, and back: what its likelihood promises, done.

Coder and decoder go through the same compiled step, token after token, with the same shapes, so
that both see the same probabilities to the last bit. That holds on one kind of device with one
version of the libraries; elsewhere the decoder notices, for an archive keeps a digest.
Documents longer than a row go through the windows of `scoring`: at the beginning of a window the
cache is filled anew, step by step.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from data_pipelines.utils.files import write_atomically
from evals.codelength.arithmetic import TOTAL, CodingError, Decoder, Encoder, cumulative_frequencies
from evals.codelength.scoring import check_stride
from jpeglm_jax.generation import decoding
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh
from jpeglm_jax.training import checkpoint

_MAGIC = b"JLMA\x01"
_SIZE = 4  # bytes of the size of the header


class Coded(NamedTuple):
    """A document as the model codes it.

    Attributes:
      stream: the arithmetic coder's bytes.
      bits: the information in it under the frequencies that were used.
    """

    stream: bytes
    bits: float


class Codec:
    """Codes documents in batches of one shape.

    Args:
      model: whose probabilities.
      batch_size: documents coded together; rounded up to what the mesh divides. Streams are
        decoded with the batch size they were coded with.
      stride: of the windows of long documents, see `scoring`.
    """

    def __init__(self, model: TrainedModel, *, batch_size: int = 32, stride: int = 0):
        parts = sharding.axis_size(model.mesh, "batch")
        self.batch_size = -(-batch_size // parts) * parts
        self.length: int = model.config.seq_len
        self.stride = check_stride(stride, self.length)
        self._eos = model.representation.eos
        mesh, spec = model.mesh, model.spec
        rows = sharding.named(mesh, "batch")
        self._place_rows = functools.partial(jax.device_put, device=rows)
        weights = decoding.weight_shardings(spec, mesh)
        caches = decoding.cache_shardings(spec, mesh)
        laid_out = jit_on_mesh(
            functools.partial(decoding.weights, spec), mesh, out_shardings=weights
        )
        self._weights = laid_out(model.params)
        self._empty = jit_on_mesh(
            functools.partial(decoding.empty_cache, spec, self.batch_size, self.length),
            mesh,
            out_shardings=caches,
        )
        self._step = jit_on_mesh(
            functools.partial(decoding.step, spec),
            mesh,
            in_shardings=(weights, rows, rows, caches),
            out_shardings=(sharding.replicated(mesh), caches),
            donate_argnums=3,
        )

    def encode(self, documents: Sequence[tuple[int, np.ndarray]]) -> Iterator[Coded]:
        """Codes (start token, tokens [n]) of each document, in order."""
        for batch in self._batches(documents):
            writers = [_Writer(tokens, self._eos) for _, tokens in batch]
            self._run([start for start, _ in batch], writers)
            for writer in writers:
                yield Coded(writer.finish(), writer.bits)

    def decode(self, streams: Sequence[tuple[int, bytes]], longest: int) -> Iterator[np.ndarray]:
        """The tokens of each document, uint16 [n], in order.

        Args:
          streams: (start token, stream) of each.
          longest: the most tokens that a document may have.

        Raises CodingError for a stream that does not end in time: it is damaged, or the model
        computes other probabilities here than where it was coded. Not all such streams are seen.
        """
        for batch in self._batches(streams):
            readers = [_Reader(stream, self._eos, longest) for _, stream in batch]
            self._run([start for start, _ in batch], readers)
            for reader in readers:
                yield np.array(reader.tokens, np.uint16)

    def _batches(self, of: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(of), self.batch_size):
            yield of[start : start + self.batch_size]

    def _run(self, starts: Sequence[int], coders: Sequence[_Coder]) -> None:
        """Goes through the places of all documents at once until each coder has met the end."""
        first = counted = 0
        while not all(coder.done for coder in coders):
            cache = self._empty()
            for place in range(first, first + self.length):
                tokens = np.zeros(self.batch_size, np.int32)
                for row, (start, coder) in enumerate(zip(starts, coders, strict=True)):
                    tokens[row] = start if place == 0 else coder.token(place - 1)
                places = np.full(self.batch_size, place - first, np.int32)
                logits, cache = self._step(
                    self._weights, self._place_rows(tokens), self._place_rows(places), cache
                )
                if place < counted:
                    continue  # coded in the window before; here it is only context
                intervals = cumulative_frequencies(np.asarray(logits))
                for coder, row in zip(coders, intervals, strict=False):
                    if not coder.done:
                        coder.code(row)
                if all(coder.done for coder in coders):
                    return
            first, counted = first + self.stride, first + self.length


class _Coder(abc.ABC):
    """One document, token after token."""

    def __init__(self, eos: int) -> None:
        self.done = False
        self.tokens: Any = []  # of numbers, those that have been coded
        self._eos = eos

    def token(self, place: int) -> int:
        """A token that has been coded; after the end any, for nothing of it is kept."""
        return int(self.tokens[place]) if place < len(self.tokens) else 0

    @abc.abstractmethod
    def code(self, starts_V: np.ndarray) -> None:
        """Codes one token, given where each token's share of the probability starts."""


class _Writer(_Coder):
    def __init__(self, tokens: np.ndarray, eos: int) -> None:
        super().__init__(eos)
        self.tokens = tokens
        self.bits = 0.0
        self._place = 0
        self._encoder = Encoder()

    def code(self, starts_V: np.ndarray) -> None:
        self.done = self._place == len(self.tokens)
        token = self._eos if self.done else int(self.tokens[self._place])
        start, end = int(starts_V[token]), int(starts_V[token + 1])
        self._encoder.write(start, end)
        self.bits -= np.log2((end - start) / TOTAL)
        self._place += 1

    def finish(self) -> bytes:
        return self._encoder.finish()


class _Reader(_Coder):
    def __init__(self, stream: bytes, eos: int, longest: int) -> None:
        super().__init__(eos)
        self.tokens: list[int] = []
        self._decoder, self._longest = Decoder(stream), longest

    def code(self, starts_V: np.ndarray) -> None:
        token = self._decoder.read(starts_V)
        self.done = token == self._eos
        if not self.done:
            if len(self.tokens) == self._longest:
                raise CodingError(_ANOTHER)
            self.tokens.append(token)


_ANOTHER = (
    "what was decoded is not what was coded: the archive is damaged, or the model computes other "
    "probabilities here than where it was written (other weights, device or versions)"
)


def write_archive(
    path: epath.PathLike,
    model: TrainedModel,
    codec: Codec,
    documents: Sequence[tuple[int, np.ndarray]],
    keys: Sequence[str],
) -> list[Coded]:
    """Codes documents into one file.

    The file: a header of JSON (model, names, start tokens), then of each document the size of its
    stream as LEB128, and the stream.

    Returns:
      What became of each document.
    """
    coded = list(codec.encode(documents))
    header = {
        **_identity(model, codec),
        "keys": list(keys),
        "starts": [start for start, _ in documents],
        "longest": max((len(tokens) for _, tokens in documents), default=0),
        "digest": _digest(tokens for _, tokens in documents),
        "versions": checkpoint.versions(),
    }
    text = json.dumps(header, ensure_ascii=False).encode()
    body = b"".join(framed(each.stream) for each in coded)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _MAGIC + len(text).to_bytes(_SIZE, "big") + text + body)
    return coded


def read_archive(path: epath.PathLike, model: TrainedModel) -> list[tuple[str, np.ndarray]]:
    """(name, tokens uint16 [n]) of each document of an archive, with the model that wrote it.

    Raises CodingError if it is no archive, is damaged, or another model's.
    """
    data = epath.Path(path).read_bytes()
    begin = len(_MAGIC) + _SIZE
    size = int.from_bytes(data[len(_MAGIC) : begin], "big")
    try:
        if not data.startswith(_MAGIC):
            raise ValueError("it does not begin as one")
        header = json.loads(data[begin : begin + size])
        starts, keys, longest = header["starts"], header["keys"], int(header["longest"])
        codec = Codec(model, batch_size=int(header["batch_size"]), stride=int(header["stride"]))
        streams = list(_streams(data, begin + size, len(starts)))
    except (ValueError, KeyError, TypeError) as error:
        raise CodingError(f"{path} is no archive of coded documents: {error}") from error
    checkpoint.refuse_difference(
        _identity(model, codec), {name: header.get(name) for name in _IDENTITY}, "model", str(path)
    )
    found = list(codec.decode(list(zip(starts, streams, strict=True)), longest))
    if _digest(found) != header["digest"]:
        raise CodingError(f"{path}: {_ANOTHER}")
    return list(zip(keys, found, strict=True))


_IDENTITY = ("fingerprint", "step", "batch_size", "stride", "context")


def _identity(model: TrainedModel, codec: Codec) -> dict[str, Any]:
    """What has to be the same for coder and decoder, as far as it can be told beforehand."""
    values = (
        model.representation.fingerprint,
        model.step,
        codec.batch_size,
        codec.stride,
        codec.length,
    )
    return dict(zip(_IDENTITY, values, strict=True))


def _streams(data: bytes, at: int, count: int) -> Iterator[bytes]:
    for _ in range(count):
        size = shift = 0
        while True:
            if at >= len(data):
                raise ValueError("it ends early")
            byte, at = data[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if at + size > len(data):
            raise ValueError("it ends early")
        yield data[at : at + size]
        at += size
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left over")


def framed(stream: bytes) -> bytes:
    """A stream as it lies in an archive, after its size as LEB128."""
    size, left = bytearray(), len(stream)
    while left >= 0x80:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes(size) + bytes([left]) + stream


def _digest(documents: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for tokens in documents:
        digest.update(len(tokens).to_bytes(8, "big") + np.asarray(tokens, "<u2").tobytes())
    return digest.hexdigest()
