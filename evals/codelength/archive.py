"""Lossless compression of documents with a model's probabilities, to one archive file and back.

Encoder and decoder run the same compiled step, token by token, with the same shapes, so that both
compute bit-identical probabilities. That holds on one kind of device with one version of the
libraries; otherwise the decoder raises an error, because an archive stores a digest. Documents
longer than the sequence length use the windows of `jpeglm_jax.generation.scoring`: the cache is
filled again, step by step, at the beginning of each window. `evals.compression --archive` runs it.
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

from data_pipelines.utils.compare import differences
from data_pipelines.utils.files import write_atomically
from evals.codelength.arithmetic import TOTAL, CodingError, Decoder, Encoder, cumulative_frequencies
from jpeglm_jax.generation import decoding
from jpeglm_jax.generation.scoring import resolve_stride
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh
from jpeglm_jax.training import checkpoint

_MAGIC = b"JLMA\x01"
_SIZE = 4  # bytes of the size of the header


class Coded(NamedTuple):
    """A coded document.

    Attributes:
      stream: the arithmetic coder's bytes.
      bits: its information under the coder's frequencies.
    """

    stream: bytes
    bits: float


class Codec:
    """Encodes and decodes documents in batches of one shape.

    Args:
      model: gives the probabilities.
      batch_size: documents per batch; rounded up to a multiple of the mesh's batch axis. Streams
        must be decoded with the batch size they were encoded with.
      stride: of the windows of long documents, see `resolve_stride`.
    """

    def __init__(self, model: TrainedModel, *, batch_size: int = 32, stride: int = 0):
        parts = sharding.axis_size(model.mesh, "batch")
        self.batch_size = -(-batch_size // parts) * parts
        self.seq_len: int = model.config.seq_len
        self.stride = resolve_stride(stride, self.seq_len)
        self._eos = model.representation.eos
        mesh, spec = model.mesh, model.spec
        rows = sharding.named(mesh, "batch")
        self._to_device = functools.partial(jax.device_put, device=rows)
        weights = decoding.weight_shardings(spec, mesh)
        caches = decoding.cache_shardings(spec, mesh)
        laid_out = jit_on_mesh(
            functools.partial(decoding.weights, spec), mesh, out_shardings=weights
        )
        self._weights = laid_out(model.params)
        self._empty = jit_on_mesh(
            functools.partial(decoding.empty_cache, spec, self.batch_size, self.seq_len),
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
        """Encodes documents, each (start token, tokens [n]), in order."""
        for batch in self._batches(documents):
            encoders = [_DocumentEncoder(tokens, self._eos) for _, tokens in batch]
            self._run([start for start, _ in batch], encoders)
            for encoder in encoders:
                yield Coded(encoder.finish(), encoder.bits)

    def decode(self, streams: Sequence[tuple[int, bytes]], max_tokens: int) -> Iterator[np.ndarray]:
        """Decodes the tokens of each document, int32 [n], in order.

        Args:
          streams: (start token, stream) of each.
          max_tokens: max tokens of a document.

        Raises CodingError for a stream without an end within `max_tokens`: it is damaged, or the
        model computes other probabilities than at encoding. Not all such streams are detected.
        """
        for batch in self._batches(streams):
            decoders = [_DocumentDecoder(stream, self._eos, max_tokens) for _, stream in batch]
            self._run([start for start, _ in batch], decoders)
            for decoder in decoders:
                yield np.array(decoder.tokens, np.int32)

    def _batches(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(items), self.batch_size):
            yield items[start : start + self.batch_size]

    def _run(self, starts: Sequence[int], coders: Sequence[_Coder]) -> None:
        """Steps through the positions of all documents in parallel until every coder is done."""
        first = counted = 0
        while not all(coder.done for coder in coders):
            cache = self._empty()
            for position in range(first, first + self.seq_len):
                tokens = np.zeros(self.batch_size, np.int32)
                for row, (start, coder) in enumerate(zip(starts, coders, strict=True)):
                    tokens[row] = start if position == 0 else coder.token(position - 1)
                positions = np.full(self.batch_size, position - first, np.int32)
                logits, cache = self._step(
                    self._weights, self._to_device(tokens), self._to_device(positions), cache
                )
                if position < counted:
                    continue  # coded in the previous window; only context in this one
                intervals = cumulative_frequencies(np.asarray(logits))
                for coder, row in zip(coders, intervals, strict=False):
                    if not coder.done:
                        coder.code(row)
                if all(coder.done for coder in coders):
                    return
            first, counted = first + self.stride, first + self.seq_len


class _Coder(abc.ABC):
    """Codes one document, token by token."""

    def __init__(self, eos: int) -> None:
        self.done = False
        self.tokens: Any = []  # integers, those coded so far
        self._eos = eos

    def token(self, index: int) -> int:
        """A token coded before; past the end, an arbitrary token: its output is discarded."""
        return int(self.tokens[index]) if index < len(self.tokens) else 0

    @abc.abstractmethod
    def code(self, starts_V: np.ndarray) -> None:
        """Codes one token, given the interval boundaries of all tokens, int64 [V + 1]."""


class _DocumentEncoder(_Coder):
    def __init__(self, tokens: np.ndarray, eos: int) -> None:
        super().__init__(eos)
        self.tokens = tokens
        self.bits = 0.0
        self._position = 0
        self._encoder = Encoder()

    def code(self, starts_V: np.ndarray) -> None:
        self.done = self._position == len(self.tokens)
        token = self._eos if self.done else int(self.tokens[self._position])
        start, end = int(starts_V[token]), int(starts_V[token + 1])
        self._encoder.write(start, end)
        self.bits -= np.log2((end - start) / TOTAL)
        self._position += 1

    def finish(self) -> bytes:
        return self._encoder.finish()


class _DocumentDecoder(_Coder):
    def __init__(self, stream: bytes, eos: int, max_tokens: int) -> None:
        super().__init__(eos)
        self.tokens: list[int] = []
        self._decoder, self._max_tokens = Decoder(stream), max_tokens

    def code(self, starts_V: np.ndarray) -> None:
        token = self._decoder.read(starts_V)
        self.done = token == self._eos
        if not self.done:
            if len(self.tokens) == self._max_tokens:
                raise CodingError(_MISMATCH)
            self.tokens.append(token)


_MISMATCH = (
    "the decoded documents differ from the encoded ones: the archive is damaged, or the model "
    "computes other probabilities than at encoding (other weights, device or library versions)"
)


def write_archive(
    path: epath.PathLike,
    model: TrainedModel,
    codec: Codec,
    documents: Sequence[tuple[int, np.ndarray]],
    keys: Sequence[str],
) -> list[Coded]:
    """Encodes documents into one file.

    The file has a JSON header (model, names, start tokens), then for each document the size of its
    stream as LEB128, and the stream.

    Returns:
      The coded documents, in order.
    """
    coded = list(codec.encode(documents))
    header = {
        **_identity(model, codec),
        "keys": list(keys),
        "start_tokens": [start for start, _ in documents],
        "max_tokens": max((len(tokens) for _, tokens in documents), default=0),
        "digest": _digest(tokens for _, tokens in documents),
        "versions": checkpoint.versions(),
    }
    text = json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    body = b"".join(with_size(each.stream) for each in coded)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _MAGIC + len(text).to_bytes(_SIZE, "big") + text + body)
    return coded


def read_archive(path: epath.PathLike, model: TrainedModel) -> list[tuple[str, np.ndarray]]:
    """(name, tokens int32 [n]) of each document of an archive, with the model that wrote it.

    Raises CodingError if it is not an archive, is damaged, or was written with another model.
    """
    data = epath.Path(path).read_bytes()
    begin = len(_MAGIC) + _SIZE
    size = int.from_bytes(data[len(_MAGIC) : begin], "big")
    try:
        if not data.startswith(_MAGIC):
            raise ValueError("it has another signature")
        header = json.loads(data[begin : begin + size])
        starts, keys = header["start_tokens"], header["keys"]
        max_tokens = int(header["max_tokens"])
        streams = list(_streams(data, begin + size, len(starts)))
        codec = Codec(model, batch_size=int(header["batch_size"]), stride=int(header["stride"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CodingError(f"{path} is not an archive of coded documents: {error}") from error
    stored = {name: header.get(name) for name in _IDENTITY}
    if different := differences(_identity(model, codec), stored):
        raise CodingError(f"{path} was written with another model: {'; '.join(different)}")
    found = list(codec.decode(list(zip(starts, streams, strict=True)), max_tokens))
    if _digest(found) != header["digest"]:
        raise CodingError(f"{path}: {_MISMATCH}")
    return list(zip(keys, found, strict=True))


_IDENTITY = ("fingerprint", "step", "weights", "batch_size", "stride", "context")


def _identity(model: TrainedModel, codec: Codec) -> dict[str, Any]:
    """What must be equal for encoder and decoder and can be checked before decoding."""
    values = (
        model.representation.fingerprint,
        model.step,
        model.weights_digest,
        codec.batch_size,
        codec.stride,
        codec.seq_len,
    )
    return dict(zip(_IDENTITY, values, strict=True))


def _streams(data: bytes, at: int, count: int) -> Iterator[bytes]:
    for _ in range(count):
        size = shift = 0
        while True:
            if at >= len(data):
                raise ValueError("it is truncated")
            byte, at = data[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise ValueError("the size of a stream has more than 64 bits")
        if at + size > len(data):
            raise ValueError("it is truncated")
        yield data[at : at + size]
        at += size
    if at != len(data):
        raise ValueError(f"it has {len(data) - at} extra bytes")


def with_size(stream: bytes) -> bytes:
    """A stream as stored in an archive, after its size as LEB128."""
    size, rest = bytearray(), len(stream)
    while rest >= 0x80:
        size.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes(size) + bytes([rest]) + stream


def _digest(documents: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for tokens in documents:
        digest.update(len(tokens).to_bytes(8, "big") + np.asarray(tokens, "<u4").tobytes())
    return digest.hexdigest()
