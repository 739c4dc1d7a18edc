"""The interface of representations, which encode media as tokens and decode tokens to media.

Everything that depends on the meaning of tokens (shards, checkpoints, metrics) stores the
`fingerprint` of its representation. Artefacts with different fingerprints are never mixed.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from etils import epath

from data_pipelines.media import Kind, images
from data_pipelines.representations.tokenizer import (
    TOKENIZER_FILE,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_config,
    train_bpe,
)

CONFIG_FILE = "representation.json"


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


class TokenMachine(Protocol):
    """A state machine over tokens that accepts exactly the valid documents of a representation.

    Constrained sampling uses it to allow only tokens from which a valid end can be reached. The
    machine and its states are NamedTuples of arrays and numbers, so both are pytrees. The methods
    work on arrays of numpy and of JAX, and are traced with the machine as an argument: shapes must
    not depend on its numbers.
    """

    def start(self) -> Any:
        """The state before the first token, of int32 scalars."""

    def step(self, state: Any, token: Array) -> Any:
        """The state after one more token of the vocabulary, int32; shapes are broadcast."""

    def min_tokens_to_end(self, state: Any) -> Array:
        """Tokens within which a document can end, int32: 0 at the end.

        `UNREACHABLE` or more if no valid end can be reached. Otherwise some token reduces it by at
        least 1. It may be more than the shortest way; the machine's docstring says where.
        """

    def min_tokens_after(self, state_Bx1: Any) -> Array:
        """`min_tokens_to_end` after each token of the vocabulary, int32 [B, V]."""


class TokenizedByteMachine(NamedTuple):
    """A state machine over bytes, for tokens that are strings of bytes.

    Attributes:
      bytes: the state machine.
      tokenizer: which bytes each token stands for.
    """

    bytes: ByteMachine
    tokenizer: Tokenizer


class Decoded(NamedTuple):
    """A decoded document, which may be damaged.

    Attributes:
      media: as `Representation.decode` returns it.
      missing_frames: frames that could not be decoded and were filled in.
      damaged_frames: frames that were decoded with errors.
    """

    media: Any
    missing_frames: int
    damaged_frames: int


class Representation(abc.ABC):
    """The interface of all representations. Subclasses are frozen dataclasses of plain options.

    A document is the tokens of one medium, without start and end tokens. Training frames it as
    inputs `[start] + tokens` and targets `tokens + [eos]`, where start is `bos`, or the token of
    the document's label in a label-conditional model.

    A medium is a PIL image, or the frames of a clip as uint8 [T, height, width, 3]. `encode` may
    take more than that; `decode` returns nothing else.

    Every representation gives `name`, `encode`, `decode`, `prompt`, `validate`, `num_codes`,
    `num_labels` and `to_config`. All else has a default: for a representation of images that has no
    codec, no files and no tokenizer. docs/architecture.md has the contract as one table.

    Attributes:
      name: the name in configurations.
      medium: the name of one medium, in messages and metrics: "image" or "clip".
      kind: the files of a source: "image" files hold one medium each, "video" files may hold
        several.
      suffix: suffix of the files that `to_bytes` returns; "" if a document has no file.
      num_labels: number of label tokens; 0 for an unconditional model.
      prepared_options: names in `to_config` of what preparation finds or trains.
      on_device: whether `encode_batch` and `decode_batch` run on JAX's devices, which are fast for
        many media at once. Preparation then encodes in its own process.
    """

    name: ClassVar[str]
    medium: ClassVar[str] = "image"
    kind: ClassVar[Kind] = "image"
    suffix: ClassVar[str] = ""
    prepared_options: ClassVar[tuple[str, ...]] = ("num_labels",)
    on_device: ClassVar[bool] = False
    num_labels: int

    # How it is made, stored and recognised

    @classmethod
    def from_options(cls, options: Mapping[str, Any], num_labels: int) -> Self:
        """The representation with the options of a configuration.

        Args:
          options: by name; files that they name are read.
          num_labels: label tokens.

        Raises:
          ValueError: an unknown option, a value out of range, or an unusable file.
        """
        return _construct(cls, {**options, "num_labels": num_labels})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], artifacts: Mapping[str, bytes]) -> Self:
        """The representation whose `to_config` and `artifacts` these are.

        Raises:
          ValueError: an unknown option, or an artefact that is missing or another one.
        """
        del artifacts
        return _construct(cls, {key: value for key, value in config.items() if key != "name"})

    @abc.abstractmethod
    def to_config(self) -> dict[str, Any]:
        """JSON values from which `from_config` makes an equal representation.

        With the SHA-256 of every artefact, so that the fingerprint depends on those too.
        """

    @property
    def artifacts(self) -> dict[str, bytes]:
        """What the meaning of the tokens needs besides options, by file name: tables, weights."""
        return {}

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of `to_config()`, all that gives tokens their meaning."""
        text = json.dumps(self.to_config(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, folder: epath.PathLike) -> None:
        """Writes the files that `representations.load` reads: the config and the artefacts.

        Args:
          folder: local or remote (see `etils.epath`); it is created if missing.
        """
        path = epath.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name, content in self.artifacts.items():
            (path / name).write_bytes(content)
        (path / CONFIG_FILE).write_text(
            json.dumps(self.to_config(), indent=2, allow_nan=False) + "\n"
        )

    def to_options(self, folder: epath.PathLike) -> dict[str, Any]:
        """Options of a configuration that describe this representation, with its name.

        Args:
          folder: where `save` wrote the artefacts, for options that name files.
        """
        del folder
        fields = {field.name for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        names = {"name", *fields} - {*self.prepared_options}
        return {name: value for name, value in self.to_config().items() if name in names}

    @property
    def encoder_versions(self) -> dict[str, str]:
        """Versions, by name, of the libraries that determine the tokens of a medium.

        With the kind of the device, if it encodes on one.
        """
        return {}

    # Training of artefacts, as a step of preparation

    @property
    def needs_training(self) -> bool:
        """Whether artefacts are missing without which nothing can be encoded; see `trained`."""
        return False

    def training_sample(self, media: Any) -> Any:
        """What `trained` needs of one medium. Raises ValueError for unusable media."""
        return media

    def trained(
        self, samples: Sequence[Any], *, vocab_size: int = 0, kind: str = "", seed: int = 0
    ) -> Self:
        """This representation with artefacts trained on media. Deterministic.

        Args:
          samples: `training_sample` of each medium.
          vocab_size: entries of a tokenizer; 0: none was requested.
          kind: of the tokenizer; "": the default.
          seed: of the training.

        Raises ValueError if there is nothing to train, or too little to train it on.
        """
        raise ValueError(
            f"{self.name} documents have no tokenizer, so none can be trained: set train_tokenizer "
            "to 0"
        )

    # Tokens

    @property
    @abc.abstractmethod
    def num_codes(self) -> int:
        """Number of token ids that stand for content: 0 to num_codes - 1."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids: content, start, end and labels."""
        return self.num_codes + 2 + self.num_labels

    @property
    def bos(self) -> int:
        """The start token of documents without a label."""
        return self.num_codes

    @property
    def eos(self) -> int:
        """The end token of documents."""
        return self.num_codes + 1

    def label_token(self, label: int) -> int:
        """The start token of documents with this label. Raises ValueError out of range."""
        if not 0 <= label < self.num_labels:
            raise ValueError(f"label is {label}; expected 0 to {self.num_labels - 1}")
        return self.num_codes + 2 + label

    @property
    def token_dtype(self) -> np.dtype:
        """The type of stored tokens: uint16, or uint32 for more than 65,536 ids."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    # Media -> tokens

    def open(self, data: bytes) -> Iterator[Any]:
        """Yields the media in a file of a source, in order, as `encode` takes them.

        Raises ValueError if the file is unusable or damaged, possibly after some media.
        """
        yield images.open_image(data)

    @property
    def mode(self) -> images.Mode:
        """The mode of images that are encoded: "RGB" or "L" (grey)."""
        return "RGB"

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(width, height) of every medium; None if each has its own."""
        return None

    @property
    def frames(self) -> int:
        """Most frames of a medium; 1 for images."""
        return 1

    @property
    def num_dimensions(self) -> int:
        """Numbers of a medium, pixels times channels, if its tokens lose none of them; else 0.

        Likelihoods are then also reported in bits per dimension. 0 too if media differ in size.
        """
        return 0

    @property
    def rate(self) -> tuple[int, int]:
        """Frames per second as (numerator, denominator); of no meaning for images."""
        return (1, 1)

    def fit(self, media: Any) -> Any:
        """The pixels that are encoded: media cropped and resized, in `mode` and `fixed_size`."""
        return images.normalise(media, self.mode)

    @abc.abstractmethod
    def encode(self, media: Any) -> np.ndarray:
        """media -> tokens, `token_dtype` [n]. Deterministic.

        Raises ValueError for unusable media.
        """

    def encode_batch(self, media: Sequence[Any]) -> list[np.ndarray]:
        """`encode` of each medium; a representation that encodes on a device does them at once."""
        return [self.encode(each) for each in media]

    def codec_bytes(self, tokens: np.ndarray) -> int:
        """Bytes that the codec writes for a document, without what is stripped; 0 if no codec."""
        del tokens
        return 0

    # Tokens -> media

    @abc.abstractmethod
    def decode(self, tokens: np.ndarray) -> Any:
        """tokens, integer [n] -> media. Raises ValueError if nothing can be decoded."""

    def decode_batch(self, documents: Sequence[np.ndarray]) -> list[Any]:
        """`decode` of each document; None for one of which nothing can be decoded."""
        return [self._decoded(tokens) for tokens in documents]

    def _decoded(self, tokens: np.ndarray) -> Any:
        try:
            return self.decode(tokens)
        except ValueError:
            return None

    def decode_with_damage(self, tokens: np.ndarray) -> Decoded:
        """`decode`, and how many frames of the medium were filled in or are damaged."""
        return Decoded(self.decode(tokens), 0, 0)

    def decode_prefix(self, tokens: np.ndarray) -> Any:
        """A prompt -> what of the medium it holds, and nothing that a decoder fills in.

        Raises ValueError if it holds nothing that can be shown.
        """
        return self.decode(tokens)

    def to_bytes(self, tokens: np.ndarray) -> bytes:
        """tokens, integer [n] -> a whole file with the suffix `suffix`, for ordinary viewers.

        Raises ValueError for a token that stands for no content, and without a `suffix`.
        """
        raise ValueError(f"{self.name} documents have no file")

    def from_bytes(self, file: bytes) -> np.ndarray:
        """A whole file, as `to_bytes` returns it -> tokens, `token_dtype` [n].

        Raises ValueError if the file was encoded with other settings, and without a `suffix`.
        """
        raise ValueError(f"{self.name} documents have no file")

    def playable(self, tokens: np.ndarray) -> tuple[str, bytes] | None:
        """(suffix, file) for players that do not open what `to_bytes` returns; None if all do.

        Raises ValueError if nothing can be shown.
        """
        del tokens
        return None

    def reencoded(self, tokens: np.ndarray) -> tuple[str, bytes] | None:
        """(suffix, file) of what can be shown of a damaged document, encoded again.

        It is another document than the one of these tokens, which stays invalid. None where
        ordinary players show a damaged file as far as it goes.

        Raises ValueError if nothing can be shown.
        """
        del tokens
        return None

    def related_sizes(self, tokens: np.ndarray) -> dict[str, float]:
        """Bytes of the same content in related codes, by name, to compare a model's with."""
        del tokens
        return {}

    # Parts and validity

    @abc.abstractmethod
    def prompt(self, tokens: np.ndarray, ratio: float) -> np.ndarray:
        """The leading tokens that hold the given fraction (0 <= ratio <= 1) of the medium."""

    def prompt_share(self, tokens: np.ndarray, ratio: float) -> float:
        """The fraction of the medium that `prompt` holds: it is cut after whole units.

        Here the share of the tokens; a representation whose units differ in tokens counts them.
        Raises ValueError where `prompt` does.
        """
        return len(self.prompt(tokens, ratio)) / max(len(tokens), 1)

    @abc.abstractmethod
    def validate(self, tokens: np.ndarray) -> Validity:
        """Strict validation of a document; see `Validity`. Never raises because of the tokens."""

    def validate_batch(self, documents: Sequence[np.ndarray]) -> list[Validity]:
        """`validate` of each document."""
        return [self.validate(tokens) for tokens in documents]

    def token_machine(
        self, size: tuple[int, int] | None = None
    ) -> TokenMachine | TokenizedByteMachine:
        """The state machine over the tokens of valid documents, for constrained sampling.

        It may leave parts of a document unconstrained; see the representation's own docstring.

        Args:
          size: (width, height) of the media, if the representation does not fix it.

        Raises:
          ValueError: there is none for this representation or size.
        """
        raise ValueError(
            f"{self.name} documents have no state machine, which constrained sampling needs; "
            "sample without --constrain"
        )


def _construct(cls: Any, options: Mapping[str, Any]) -> Any:
    """A value of the class. Raises ValueError for an option that it does not have."""
    fields = [field.name for field in dataclasses.fields(cls)]
    if unknown := sorted(set(options) - set(fields)):
        raise ValueError(
            f"{cls.name} has no option {', '.join(unknown)}; expected some of {', '.join(fields)}"
        )
    return cls(**options)


class TokenizedRepresentation(Representation):
    """A representation of media as codec bytes, which a tokenizer encodes as tokens.

    Attributes:
      tokenizer: codec bytes <-> tokens.
    """

    prepared_options: ClassVar[tuple[str, ...]] = ("tokenizer",)
    tokenizer: Tokenizer

    @classmethod
    def from_options(cls, options: Mapping[str, Any], num_labels: int) -> Self:
        """See `Representation.from_options`; `tokenizer` is a name or the path of a model."""
        others = {name: value for name, value in options.items() if name != "tokenizer"}
        tokenizer = cls.load_tokenizer(options.get("tokenizer", "bytes"), num_labels, others)
        return _construct(cls, {**others, "tokenizer": tokenizer})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], artifacts: Mapping[str, bytes]) -> Self:
        options = {key: value for key, value in config.items() if key != "name"}
        if "tokenizer" not in options:
            raise ValueError(
                "the representation's config has no 'tokenizer'; expected the values of to_config()"
            )
        stored = options.pop("tokenizer")
        model = artifacts.get(TOKENIZER_FILE) if stored.get("model_sha256") else None
        return _construct(
            cls, {**options, "tokenizer": cls.tokenizer_from_config(stored, model, options)}
        )

    @classmethod
    def load_tokenizer(cls, spec: str, num_labels: int, options: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that a configuration names; see `tokenizer.load_tokenizer`.

        Args:
          spec: its name, or the path of a model.
          num_labels: label tokens.
          options: the other options of the representation.
        """
        del options
        return load_tokenizer(spec, num_labels)

    @classmethod
    def tokenizer_from_config(
        cls, config: dict[str, Any], model: bytes | None, options: Mapping[str, Any]
    ) -> Tokenizer:
        """The tokenizer with this config; see `tokenizer.tokenizer_from_config`."""
        del options
        return tokenizer_from_config(config, model)

    @property
    def artifacts(self) -> dict[str, bytes]:
        return dict(self.tokenizer.files)

    def to_options(self, folder: epath.PathLike) -> dict[str, Any]:
        has_model = TOKENIZER_FILE in self.tokenizer.files
        tokenizer = str(epath.Path(folder) / TOKENIZER_FILE) if has_model else None
        return super().to_options(folder) | {
            "tokenizer": tokenizer or self.tokenizer.to_config()["kind"]
        }

    def training_sample(self, media: Any) -> bytes:
        """The codec bytes of a medium."""
        return self.tokenizer.decode(self.encode(media))

    def trained(
        self, samples: Sequence[bytes], *, vocab_size: int = 0, kind: str = "", seed: int = 0
    ) -> Self:
        """The representation with a tokenizer trained on codec bytes; see `train_tokenizer`.

        Raises ValueError without a `vocab_size`.
        """
        del seed  # the sample alone decides the tokenizer
        if not vocab_size:
            raise ValueError(
                "found no number of entries for the tokenizer; set train_tokenizer.vocab_size (the "
                "paper: 320)"
            )
        model = self.train_tokenizer(samples, vocab_size, kind or "bpe")
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        options = {field.name: getattr(self, field.name) for field in fields}
        del options["tokenizer"]
        with tempfile.NamedTemporaryFile(suffix=".model") as file:
            file.write(model)
            file.flush()
            tokenizer = self.load_tokenizer(file.name, self.num_labels, options)
        return _construct(type(self), {**options, "tokenizer": tokenizer})

    def train_tokenizer(self, documents: Iterable[bytes], vocab_size: int, kind: str) -> bytes:
        """Trains a SentencePiece model on the codec bytes of documents.

        Args:
          documents: read once.
          vocab_size: entries of the model, special tokens included.
          kind: "bpe", over bytes, or another one that the representation has.

        Raises:
          ValueError: there is no such kind; or see `tokenizer.train_bpe`.
        """
        if kind != "bpe":
            raise ValueError(f'{self.name} has no tokenizer of kind {kind!r}; expected "bpe"')
        return train_bpe(documents, vocab_size)

    @property
    def num_codes(self) -> int:
        return self.tokenizer.first_label

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
    def num_labels(self) -> int:  # type: ignore[override]  # of the tokenizer
        return self.tokenizer.num_labels

    def label_token(self, label: int) -> int:
        return self.tokenizer.label_token(label)

    def codec_bytes(self, tokens: np.ndarray) -> int:
        return len(self._content(tokens)[0])

    def token_machine(
        self, size: tuple[int, int] | None = None
    ) -> TokenMachine | TokenizedByteMachine:
        """`byte_machine`, with the tokenizer."""
        return TokenizedByteMachine(self.byte_machine(size), self.tokenizer)

    def byte_machine(self, size: tuple[int, int] | None = None) -> ByteMachine:
        """The state machine over the bytes of valid documents; see `token_machine`."""
        raise ValueError(
            f"{self.name} documents have no byte machine, which constrained sampling needs; "
            "sample without --constrain"
        )

    def _content(self, tokens: np.ndarray) -> tuple[bytes, str]:
        """(the bytes before the first token that stands for none, that token's error or "")."""
        try:
            return self.tokenizer.decode(tokens), ""
        except ValueError as error:
            content = self._is_content(tokens)
            first = int(np.argmin(content))
            return self.tokenizer.decode(np.asarray(tokens)[:first]), str(error)

    def _is_content(self, tokens: np.ndarray) -> np.ndarray:
        """Which tokens stand for content, bool [n]; [False] if tokens are not integers [n]."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            return np.zeros(1, bool)
        known = (ids >= 0) & (ids < self.vocab_size)
        return known & self.tokenizer.is_content[np.where(known, ids, 0)]
