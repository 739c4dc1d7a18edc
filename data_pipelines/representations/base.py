"""A representation is a value: it turns one medium into tokens and back.

Everything that must agree on what tokens mean (shards, checkpoints, metrics) carries the
`fingerprint` of the representation it was made with; two that differ are never mixed.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import PIL
from etils import epath
from PIL import features

from data_pipelines.media import images
from data_pipelines.representations import tokenizer as tokenizers
from data_pipelines.representations.tokenizer import Tokenizer
from data_pipelines.sources.base import Kind

CONFIG_FILE = "representation.json"


@dataclasses.dataclass(frozen=True)
class Validity:
    """The strict judgement on one document: valid only if an encoder could have written it.

    Attributes:
      valid: every unit is complete and nothing is left over.
      units: complete units (JPEG: MCUs, AVC: frames) before the first damage.
      expected: units that a whole document has.
      error: empty if valid; else one sentence that says where the damage is and what it is.
    """

    valid: bool
    units: int
    expected: int
    error: str = ""


Array = Any  # numpy.ndarray or jax.Array
UNREACHABLE = 1 << 29  # more bytes than any stream has


class ByteMachine(Protocol):
    """What may follow in a stream of bytes. Its methods run on numpy's and on JAX's arrays.

    A NamedTuple of arrays and numbers, and so are its states. `UNREACHABLE`, or more, stands for the
    bytes to the end of a stream where no valid one can follow.
    """

    def start(self) -> Any:
        """The state before the first byte, of int32 scalars."""

    def step(self, state: Any, byte: Array) -> Any:
        """The state after one more byte, int32, 0-255; shapes are broadcast."""

    def min_bytes_to_end(self, state: Any) -> Array:
        """Bytes after which a stream can end at the earliest, int32: 0 at its end.

        There is always a byte that makes it at least one less.
        """

    def min_bytes_after(self, state_Bx1: Any) -> Array:
        """`min_bytes_to_end` after each of the 256 bytes, int32 [B, 256], at less expense than `step`."""


class TokenMachine(Protocol):
    """What may follow in a document of tokens. Its methods run on numpy's and on JAX's arrays.

    A NamedTuple of arrays and numbers, and so are its states. `UNREACHABLE`, or more, stands for
    the tokens to the end of a document where no valid one can follow.
    """

    def start(self) -> Any:
        """The state before the first token, of int32 scalars."""

    def step(self, state: Any, token: Array) -> Any:
        """The state after one more token, int32, of the vocabulary; shapes are broadcast."""

    def min_tokens_to_end(self, state: Any) -> Array:
        """Tokens within which a document can end, int32: 0 at its end.

        There is always a token that makes it at least one less. It may be more than the shortest
        way takes; the machine's own docstring says where.
        """

    def min_tokens_after(self, state_Bx1: Any) -> Array:
        """`min_tokens_to_end` after each token of the vocabulary, int32 [B, V]."""


class Representation(abc.ABC):
    """What every representation offers. Subclasses are frozen dataclasses of plain options.

    A document is the tokens of one medium, without start or end: rows frame it as
    `[start] + tokens` (inputs) and `tokens + [eos]` (targets), where start is `bos`, or the token
    of its label in a label-conditional model.

    Attributes:
      name: in configurations.
      suffix: of the files that `to_bytes` gives.
      medium: what one document is called: "image", "clip".
      kind: of the files in a source: "image", each of which is one medium, or "video", of which
        each may hold several.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    medium: ClassVar[str] = "image"
    kind: ClassVar[Kind] = "image"

    def open(self, data: bytes) -> Iterator[Any]:
        """The media in a file of a source, in order, as `encode` takes them.

        Raises ValueError, maybe after the first of them, where the file is unusable or damaged.
        """
        yield images.open_image(data)

    @property
    def encoder_versions(self) -> dict[str, str]:
        """The libraries that decide the bytes of an encoded medium, with their versions."""
        turbo = features.version_feature("libjpeg_turbo")
        return {"pillow": PIL.__version__, "libjpeg": turbo or features.version("jpg") or "unknown"}

    @abc.abstractmethod
    def encode(self, media: Any) -> np.ndarray:
        """media -> tokens, uint16 [n]. Deterministic. Raises ValueError for unusable media."""

    @abc.abstractmethod
    def decode(self, tokens: np.ndarray) -> Any:
        """tokens, integer [n] -> media. Raises ValueError if they cannot be shown at all."""

    @abc.abstractmethod
    def to_bytes(self, tokens: np.ndarray) -> bytes:
        """tokens, integer [n] -> a whole file, named *`suffix`, that ordinary viewers open.

        Raises ValueError for a token that stands for no content.
        """

    @abc.abstractmethod
    def from_bytes(self, file: bytes) -> np.ndarray:
        """A whole file, as `to_bytes` gives it -> tokens, uint16 [n].

        Raises ValueError unless the file is of this representation's settings.
        """

    @abc.abstractmethod
    def prompt(self, tokens: np.ndarray, ratio: float) -> np.ndarray:
        """The leading tokens that hold the given part (0 <= ratio <= 1) of the medium."""

    @abc.abstractmethod
    def validate(self, tokens: np.ndarray) -> Validity:
        """Judges a document strictly; see `Validity`. Never raises on wrong tokens."""

    def validate_batch(self, documents: Sequence[np.ndarray]) -> list[Validity]:
        """`validate` of each document."""
        return [self.validate(tokens) for tokens in documents]

    def byte_machine(self, size: tuple[int, int] | None = None) -> ByteMachine:
        """What may follow in the bytes of a valid document, for sampling that allows nothing else.

        It may leave parts free; the representation's own docstring says which.

        Args:
          size: (width, height) of the media, where the representation does not fix it.

        Raises:
          ValueError: there is none for this representation or size.
        """
        raise ValueError(
            f"{self.name} documents cannot be constrained: nothing tells what may follow in them; "
            "sample without --constrain"
        )

    def token_machine(self, size: tuple[int, int] | None = None) -> TokenMachine | None:
        """What may follow in the tokens of a valid document; None where `byte_machine` decides it.

        Args, raises: as `byte_machine`.
        """
        del size
        return None

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids: content, specials and labels. At most 65,536."""

    @property
    @abc.abstractmethod
    def bos(self) -> int:
        """Start of an unlabelled document."""

    @property
    @abc.abstractmethod
    def eos(self) -> int:
        """End of a document."""

    @property
    @abc.abstractmethod
    def num_labels(self) -> int:
        """Number of label tokens; 0 for an unconditional model."""

    @abc.abstractmethod
    def label_token(self, label: int) -> int:
        """The start token of documents with this label. Raises ValueError out of range."""

    @property
    @abc.abstractmethod
    def byte_lengths(self) -> np.ndarray:
        """Codec bytes that each token stands for, int32 [vocab_size]; 0 for specials, labels."""

    @abc.abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Plain JSON values from which `representations.from_config` makes an equal value."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that decides what the tokens mean."""
        text = json.dumps(self.to_config(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, folder: epath.PathLike) -> None:
        """Writes what `representations.load` needs.

        The folder may be anything that `etils.epath` reaches, and is made if missing.
        """
        path = epath.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG_FILE).write_text(json.dumps(self.to_config(), indent=2) + "\n")


class TokenizedRepresentation(Representation):
    """Media as codec bytes that a tokenizer makes tokens of: its ids are the documents'.

    Attributes:
      tokenizer: bytes -> tokens.
    """

    tokenizer: Tokenizer

    @classmethod
    def load_tokenizer(cls, spec: str, num_labels: int, options: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that a configuration names; see `tokenizer.load`.

        options: the other ones of the representation.
        """
        del options
        return tokenizers.load(spec, num_labels)

    @classmethod
    def tokenizer_from_config(
        cls, config: dict[str, Any], model: bytes | None, options: Mapping[str, Any]
    ) -> Tokenizer:
        """The tokenizer that gave this `to_config`; see `tokenizer.from_config`."""
        del options
        return tokenizers.from_config(config, model)

    def train_tokenizer(self, documents: Iterable[bytes], vocab_size: int, kind: str) -> bytes:
        """Learns a SentencePiece model from the codec bytes of documents.

        Args:
          documents: read once.
          vocab_size: entries of the model, specials among them.
          kind: "bpe", over bytes, or another one that the representation has.

        Raises:
          ValueError: there is no such kind, or see `tokenizer.train_bpe`.
        """
        if kind != "bpe":
            raise ValueError(f'{self.name} has no tokenizer of kind {kind!r}; expected "bpe"')
        return tokenizers.train_bpe(documents, vocab_size)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def bos(self) -> int:
        return self.tokenizer.bos

    @property
    def eos(self) -> int:
        return self.tokenizer.eos

    @property
    def num_labels(self) -> int:
        return self.tokenizer.num_labels

    def label_token(self, label: int) -> int:
        return self.tokenizer.label_token(label)

    @property
    def byte_lengths(self) -> np.ndarray:
        return self.tokenizer.byte_lengths

    def _content(self, tokens: np.ndarray) -> tuple[bytes, str]:
        """(bytes up to the first token that stands for none, what is wrong with that token)."""
        try:
            return self.tokenizer.decode(tokens), ""
        except ValueError as error:
            content = self._is_content(tokens)
            first = int(np.argmin(content))
            return self.tokenizer.decode(np.asarray(tokens)[:first]), str(error)

    def _is_content(self, tokens: np.ndarray) -> np.ndarray:
        """Which tokens stand for bytes, bool [n]; none of what is not integers [n]."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            return np.zeros(1, bool)
        known = (ids >= 0) & (ids < self.vocab_size)
        return known & self.tokenizer.is_content[np.where(known, ids, 0)]

    def save(self, folder: epath.PathLike) -> None:
        """Writes the config, and the tokenizer's files, such as its SentencePiece model."""
        super().save(folder)
        for name, content in self.tokenizer.files.items():
            (epath.Path(folder) / name).write_bytes(content)
