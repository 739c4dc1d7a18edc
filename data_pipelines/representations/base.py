"""The interface of representations, which encode media as tokens and decode tokens to media.

Everything that depends on the meaning of tokens (shards, checkpoints, metrics) stores the
`fingerprint` of its representation. Artefacts with different fingerprints are never mixed.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import PIL
from etils import epath
from PIL import features

from data_pipelines.media import Kind, images
from data_pipelines.representations.tokenizer import BpeTokenizer, Tokenizer

CONFIG_FILE = "representation.json"
TOKENIZER_FILE = "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class Validity:
    """The result of strict validation: a document is valid if an encoder could have written it.

    Attributes:
      valid: every unit is complete and nothing is left over.
      units: complete units (JPEG: MCUs, AVC: frames) before the first damage.
      expected: units that a whole document has.
      error: "" if valid; else one sentence with the offset and kind of the first damage.
    """

    valid: bool
    units: int
    expected: int
    error: str = ""


Array = Any  # numpy.ndarray or jax.Array
UNREACHABLE = 1 << 29  # min bytes to the end where no valid end can be reached


class ByteMachine(Protocol):
    """A state machine over bytes that accepts exactly the valid streams of a codec.

    Constrained sampling uses it to allow only bytes from which a valid end can be reached. The
    machine and its states are NamedTuples of arrays and numbers, so both are pytrees. The methods
    work on arrays of numpy and of JAX.
    """

    def start(self) -> Any:
        """The state before the first byte, of int32 scalars."""

    def step(self, state: Any, byte: Array) -> Any:
        """The state after one more byte, int32, 0-255; shapes are broadcast."""

    def min_bytes_to_end(self, state: Any) -> Array:
        """Min bytes to the end of a valid stream, int32: 0 at the end.

        `UNREACHABLE` or more if no valid end can be reached. Otherwise some byte reduces it by at
        least 1.
        """

    def min_bytes_after(self, state_Bx1: Any) -> Array:
        """`min_bytes_to_end` after each of the 256 bytes, int32 [B, 256]; cheaper than `step`."""


class Representation(abc.ABC):
    """The interface of all representations. Subclasses are frozen dataclasses of plain options.

    A document is the tokens of one medium, without start and end tokens. Training frames it as
    inputs `[start] + tokens` and targets `tokens + [eos]`, where start is `bos`, or the token of
    the document's label in a label-conditional model.

    Attributes:
      name: the name in configurations.
      suffix: suffix of the files that `to_bytes` returns.
      medium: the name of one medium: "image" or "clip".
      kind: the files of a source: "image" files hold one medium each, "video" files may hold
        several.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    medium: ClassVar[str] = "image"
    kind: ClassVar[Kind] = "image"

    def open(self, data: bytes) -> Iterator[Any]:
        """Yields the media in a file of a source, in order, as `encode` takes them.

        Raises ValueError if the file is unusable or damaged, possibly after some media.
        """
        yield images.open_image(data)

    @property
    def encoder_versions(self) -> dict[str, str]:
        """Versions, by name, of the libraries that determine the bytes of an encoded medium."""
        turbo = features.version_feature("libjpeg_turbo")
        return {"pillow": PIL.__version__, "libjpeg": turbo or features.version("jpg") or "unknown"}

    @abc.abstractmethod
    def encode(self, media: Any) -> np.ndarray:
        """media -> tokens, uint16 [n]. Deterministic. Raises ValueError for unusable media."""

    @abc.abstractmethod
    def decode(self, tokens: np.ndarray) -> Any:
        """tokens, integer [n] -> media. Raises ValueError if nothing can be decoded."""

    @abc.abstractmethod
    def to_bytes(self, tokens: np.ndarray) -> bytes:
        """tokens, integer [n] -> a whole file with the suffix `suffix`, for ordinary viewers.

        Raises ValueError for a token that stands for no content.
        """

    @abc.abstractmethod
    def from_bytes(self, file: bytes) -> np.ndarray:
        """A whole file, as `to_bytes` returns it -> tokens, uint16 [n].

        Raises ValueError if the file was encoded with other settings.
        """

    @abc.abstractmethod
    def prompt(self, tokens: np.ndarray, ratio: float) -> np.ndarray:
        """The leading tokens that hold the given fraction (0 <= ratio <= 1) of the medium."""

    @abc.abstractmethod
    def validate(self, tokens: np.ndarray) -> Validity:
        """Strict validation of a document; see `Validity`. Never raises because of the tokens."""

    def validate_batch(self, documents: Sequence[np.ndarray]) -> list[Validity]:
        """`validate` of each document."""
        return [self.validate(tokens) for tokens in documents]

    def byte_machine(self, size: tuple[int, int] | None = None) -> ByteMachine:
        """The state machine over the bytes of valid documents, for constrained sampling.

        It may leave parts of a document unconstrained; see the representation's own docstring.

        Args:
          size: (width, height) of the media, if the representation does not fix it.

        Raises:
          ValueError: there is none for this representation or size.
        """
        raise ValueError(
            f"{self.name} documents have no byte machine, which constrained sampling needs; "
            "sample without --constrain"
        )

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids: content, specials and labels. At most 65,536."""

    @property
    @abc.abstractmethod
    def bos(self) -> int:
        """The start token of documents without a label."""

    @property
    @abc.abstractmethod
    def eos(self) -> int:
        """The end token of documents."""

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
        """Codec bytes of each token, int32 [vocab_size]; 0 for special and label tokens."""

    @abc.abstractmethod
    def to_config(self) -> dict[str, Any]:
        """JSON values from which `representations.from_config` makes an equal representation."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of `to_config()`, all that gives tokens their meaning."""
        text = json.dumps(self.to_config(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, folder: epath.PathLike) -> None:
        """Writes the files that `representations.load` reads.

        Args:
          folder: local or remote (see `etils.epath`); it is created if missing.
        """
        path = epath.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG_FILE).write_text(json.dumps(self.to_config(), indent=2) + "\n")


class TokenizedRepresentation(Representation):
    """A representation of media as codec bytes, which a tokenizer encodes as tokens.

    Attributes:
      tokenizer: codec bytes <-> tokens.
    """

    tokenizer: Tokenizer

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
        """(the bytes before the first token that stands for none, that token's error or "")."""
        try:
            return self.tokenizer.decode(tokens), ""
        except ValueError as error:
            content = self._is_content(tokens)
            first = int(np.argmin(content))
            return self.tokenizer.decode(np.asarray(tokens)[:first]), str(error)

    def _is_content(self, tokens: np.ndarray) -> np.ndarray:
        """Which tokens stand for bytes, bool [n]; [False] if tokens are not integers [n]."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            return np.zeros(1, bool)
        known = (ids >= 0) & (ids < self.vocab_size)
        return known & (self.byte_lengths[np.where(known, ids, 0)] > 0)

    def save(self, folder: epath.PathLike) -> None:
        """Writes the config and, for BPE, the SentencePiece model."""
        super().save(folder)
        if isinstance(self.tokenizer, BpeTokenizer):
            (epath.Path(folder) / TOKENIZER_FILE).write_bytes(self.tokenizer.model)
