"""Tokenizers of codec bytes: one token per byte, or SentencePiece BPE.

Both tokenizers are frozen, hashable and compare by value. The tokens of a document hold only its
bytes; the start token (`bos` or a label token) and `eos` are added when documents are framed.

| ids          | `ByteTokenizer`     | `BpeTokenizer`                                        |
|--------------|---------------------|-------------------------------------------------------|
| bytes        | 0-255               | where the SentencePiece model has them                |
| BOS, EOS     | 256, 257            | the model's own (1 and 2 as trained here; 0 is UNK)   |
| label k      | 258 + k             | number of pieces + k                                  |

**Characters.** SentencePiece works on text, so byte b is written as the character `chr(10240 + b)`
(U+2800-U+28FF, the Braille patterns), the mapping of JPEG-LM (arXiv 2408.08459).

**In `transformers`.** A `tokenizer.model` saved from `BpeTokenizer.model` gives the same ids there,
after the BOS that `transformers` puts in front (label tokens are not part of the file):

    from transformers import LlamaTokenizer
    tokenizer = LlamaTokenizer.from_pretrained(FOLDER)                      # 4.38, sentencepiece
    tokenizer = LlamaTokenizer.from_pretrained(FOLDER, add_bos_token=True)  # 5, + protobuf
    ids = tokenizer("".join(chr(10240 + b) for b in data))["input_ids"]

`FOLDER` holds `tokenizer.model`. Version 5 needs the `protobuf` package to read it and adds BOS
only with add_bos_token=True.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
from etils import epath

TOKENIZER_FILE = "tokenizer.model"  # the SentencePiece model, in the folder of a representation

# The control piece in models over code words: which codec's, and a hash (`codewords.alphabet`).
CODEWORDS = re.compile(r"<[a-z0-9]+_codewords:[A-Za-z0-9:]+>")

_FIRST_CHARACTER = 10240
_MAX_VOCAB_SIZE = 1 << 16
_MAX_SENTENCE = (1 << 16) - 1
_CHARACTER_COUNT = 64  # enough for 2**31 characters
_WORD_BOUNDARY = "\u2581"  # what SentencePiece writes for a space, and for its dummy prefix


class Tokenizer(abc.ABC):
    """The interface of both tokenizers. Subclasses are frozen dataclasses."""

    num_labels: int

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
    def first_label(self) -> int:
        """Id of label 0; labels are the last ids of the vocabulary."""

    @property
    @abc.abstractmethod
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of each token, one entry per id; b"" for special and label tokens."""

    @abc.abstractmethod
    def encode(self, data: bytes) -> np.ndarray:
        """Bytes -> tokens, uint16 [n]. Deterministic; `decode` returns the same bytes."""

    @abc.abstractmethod
    def encode_batch(self, documents: Sequence[bytes], num_threads: int = -1) -> list[np.ndarray]:
        """`encode` of each document, uint16 [n] each. num_threads: -1 for one per core."""

    @abc.abstractmethod
    def to_config(self) -> dict[str, Any]:
        """JSON values from which `tokenizer_from_config` makes an equal tokenizer."""

    @property
    def characters(self) -> str:
        """How ids 0, 1, ... are written as text; "" where the pieces of a model decide it."""
        return ""

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files that belong to it in the folder of a representation, by name."""
        return {}

    @property
    def vocab_size(self) -> int:
        """Number of token ids: content, specials and labels."""
        return self.first_label + self.num_labels

    def label_token(self, label: int) -> int:
        """The start token of documents with this label. Raises ValueError out of range."""
        if not 0 <= label < self.num_labels:
            raise ValueError(
                f"label {label} is not one of the tokenizer's {self.num_labels} labels; "
                "make it with a larger num_labels, or correct the label"
            )
        return self.first_label + label

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """Number of bytes of each token, int32 [vocab_size]; 0 for special and label tokens."""
        lengths = np.array([len(piece) for piece in self.token_bytes], np.int32)
        lengths.flags.writeable = False
        return lengths

    @property
    def is_content(self) -> np.ndarray:
        """Which ids stand for content, bool [vocab_size]."""
        return self.byte_lengths > 0

    @functools.cached_property
    def _is_content(self) -> np.ndarray:
        """Which ids may occur anywhere in a document, bool [vocab_size]."""
        return self.byte_lengths > 0

    @property
    def _prefix(self) -> int | None:
        """An id without bytes that may be the first of a document; None if there is none."""
        return None

    @functools.cached_property
    def prefixes(self) -> tuple[int, ...]:
        """Tokens that stand for no bytes and may be the first of a document, ascending."""
        without_bytes = self._is_content & (self.byte_lengths == 0)
        first = set() if self._prefix is None else {self._prefix}
        return tuple(sorted(first.union(np.flatnonzero(without_bytes).tolist())))

    def decode(self, tokens: np.ndarray | Sequence[int]) -> bytes:
        """Tokens, integer [n] -> bytes.

        Raises ValueError for the first token that is not content (a special, a label or an id
        outside the vocabulary), with its position.
        """
        ids = np.asarray(tokens)
        if ids.size == 0:
            return b""
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"expected integer tokens [n], found {ids.dtype} {list(ids.shape)}")
        known = (ids >= 0) & (ids < self.vocab_size)
        content = known & self._is_content[np.where(known, ids, 0)]
        content[0] |= ids[0] == self._prefix
        if not content.all():
            position = int(np.argmin(content))
            token = int(ids[position])
            raise ValueError(
                f"token {token} ({self._name(token)}) at position {position} stands for no bytes; "
                "remove start, end and label tokens before decoding"
            )
        return self._join(ids)

    def _join(self, ids: np.ndarray) -> bytes:
        return b"".join([self.token_bytes[token] for token in ids.tolist()])

    def _name(self, token: int) -> str:
        """The name of a token that stands for no bytes, for error messages."""
        if token == self.bos:
            return "BOS"
        if token == self.eos:
            return "EOS"
        if self.first_label <= token < self.vocab_size:
            return f"label {token - self.first_label}"
        if 0 <= token < self.vocab_size:
            return "special"
        return f"outside the vocabulary of {self.vocab_size}"

    def _check_vocab_size(self) -> None:
        if self.num_labels < 0 or self.vocab_size > _MAX_VOCAB_SIZE:
            raise ValueError(
                f"{self.num_labels} labels make a vocabulary of {self.vocab_size}; expected 0 or "
                f"more labels and at most {_MAX_VOCAB_SIZE} ids, as tokens are stored as uint16"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the options are pickled for worker processes, not the cached tables.
        options = tuple(getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return type(self), options


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """One token per byte: ids 0-255 are the bytes, 256 BOS, 257 EOS, 258 + k label k."""

    num_labels: int = 0

    def __post_init__(self) -> None:
        self._check_vocab_size()

    @property
    def bos(self) -> int:
        return 256

    @property
    def eos(self) -> int:
        return 257

    @property
    def first_label(self) -> int:
        return 258

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        specials = (b"",) * (self.vocab_size - 256)
        return tuple(bytes([byte]) for byte in range(256)) + specials

    def encode(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def encode_batch(self, documents: Sequence[bytes], num_threads: int = -1) -> list[np.ndarray]:
        del num_threads  # encoding copies memory; threads would only add overhead
        return [self.encode(data) for data in documents]

    def _join(self, ids: np.ndarray) -> bytes:
        return ids.astype(np.uint8).tobytes()

    @property
    def characters(self) -> str:
        return _to_characters(bytes(range(256)))

    def to_config(self) -> dict[str, Any]:
        return {"kind": "bytes", "num_labels": self.num_labels}


@dataclasses.dataclass(frozen=True, repr=False)
class BpeTokenizer(Tokenizer):
    """A SentencePiece model over codec characters, with its own ids; labels come after them.

    The ids of a document are exactly those of SentencePiece (and of the slow Llama tokenizer of
    `transformers`). Models of `train_bpe` have a token for every byte and add no prefix. A model
    trained with SentencePiece's defaults adds a dummy prefix to every document: a piece of its own,
    or UNK if the default character_coverage excluded it in a large corpus (`transformers` 5, unlike
    4.38, omits that UNK). The prefix takes a position and stands for no bytes; `decode` ignores it.

    Attributes:
      model: the serialised model, the contents of a `tokenizer.model`.
      num_labels: label tokens after the model's pieces.

    Raises:
      ValueError: not a SentencePiece model; no BOS or EOS; no pieces of codec characters; or more
        than 65,536 ids.
    """

    model: bytes
    num_labels: int = 0

    def __post_init__(self) -> None:
        processor = self._processor
        if processor.bos_id() < 0 or processor.eos_id() < 0:
            raise ValueError(
                f"the SentencePiece model has BOS id {processor.bos_id()} and EOS id "
                f"{processor.eos_id()}; expected both (-1 is none): train it with bos_id and eos_id"
            )
        controls = filter(processor.is_control, range(processor.get_piece_size()))
        for name in map(processor.id_to_piece, controls):
            if CODEWORDS.match(name):
                raise ValueError(
                    f"the SentencePiece model was trained on {name}, the code words of a codec, "
                    "expected one on bytes: use it with that codec's representation"
                )
        if not any(self.token_bytes):
            raise ValueError(
                "no piece of the SentencePiece model is made of codec characters (byte b as "
                f"chr({_FIRST_CHARACTER} + b)); expected a model trained on them, as by train_bpe"
            )
        self._check_vocab_size()

    def __repr__(self) -> str:
        return f"BpeTokenizer(sha256={self.sha256[:16]}, num_labels={self.num_labels})"

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the model, in hex."""
        return hashlib.sha256(self.model).hexdigest()

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(self.model)
        except RuntimeError as error:
            raise ValueError(
                f"found {len(self.model)} bytes that are not a SentencePiece model ({error}); "
                "expected the contents of a tokenizer.model"
            ) from error
        return processor

    @property
    def files(self) -> Mapping[str, bytes]:
        return {TOKENIZER_FILE: self.model}

    @property
    def bos(self) -> int:
        return self._processor.bos_id()

    @property
    def eos(self) -> int:
        return self._processor.eos_id()

    @property
    def first_label(self) -> int:
        return self._processor.get_piece_size()

    @functools.cached_property
    def _pieces(self) -> tuple[bytes | None, ...]:
        """Bytes of each of the model's pieces; None for pieces not made of codec characters."""
        processor = self._processor
        return tuple(
            None
            if processor.is_control(token) or processor.is_unknown(token)
            else _piece_bytes(processor.id_to_piece(token))
            for token in range(processor.get_piece_size())
        )

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        return tuple(piece or b"" for piece in self._pieces) + (b"",) * self.num_labels

    @functools.cached_property
    def _is_content(self) -> np.ndarray:
        # Not byte_lengths > 0: a dummy prefix is part of a document but stands for no bytes.
        labels = [False] * self.num_labels
        return np.array([piece is not None for piece in self._pieces] + labels, bool)

    @functools.cached_property
    def _prefix(self) -> int | None:
        some_bytes = next(piece for piece in self._pieces if piece)
        unknown = self._processor.unk_id()
        starts_unknown = self._processor.encode(_to_characters(some_bytes))[:1] == [unknown]
        return unknown if starts_unknown else None

    def encode(self, data: bytes) -> np.ndarray:
        """See `Tokenizer.encode`. Raises ValueError if the model lacks a piece for a byte."""
        return self._checked(data, self._processor.encode(_to_characters(data)))

    def encode_batch(self, documents: Sequence[bytes], num_threads: int = -1) -> list[np.ndarray]:
        """See `Tokenizer.encode_batch`. Raises ValueError if the model lacks a piece for a byte."""
        texts = [_to_characters(data) for data in documents]
        ids = self._processor.encode(texts, num_threads=num_threads)
        return [self._checked(data, tokens) for data, tokens in zip(documents, ids, strict=True)]

    def _checked(self, data: bytes, ids: list[int]) -> np.ndarray:
        """The ids as tokens. Raises ValueError unless they hold every byte of the data."""
        tokens = np.array(ids, np.uint16)
        held = int(self.byte_lengths[tokens].sum())
        if held != len(data):
            missing = sorted(set(data) - set(b"".join(self.token_bytes)))
            named = ", ".join(f"{byte:#04x}" for byte in missing[:8]) or "removed by its normaliser"
            raise ValueError(
                f"the SentencePiece model encodes {held} of {len(data)} bytes; without a piece: "
                f"{named}. Use a model that has all 256 characters, as train_bpe makes it"
            )
        return tokens

    def _name(self, token: int) -> str:
        name = super()._name(token)
        return self._processor.id_to_piece(token) if name == "special" else name

    def to_config(self) -> dict[str, Any]:
        return {"kind": "bpe", "model_sha256": self.sha256, "num_labels": self.num_labels}


def load_tokenizer(spec: str, num_labels: int = 0) -> Tokenizer:
    """The tokenizer named in a configuration.

    Args:
      spec: "bytes", or the path of a SentencePiece model, local or remote.
      num_labels: number of label tokens.

    Raises:
      ValueError: the file is missing or not a SentencePiece model of codec characters.
    """
    if spec == "bytes":
        return ByteTokenizer(num_labels)
    path = epath.Path(spec)
    if not path.is_file():
        raise ValueError(
            f'found tokenizer={spec!r}, which is no file; expected "bytes" or a tokenizer.model'
        )
    return BpeTokenizer(path.read_bytes(), num_labels)


def tokenizer_from_config(config: dict[str, Any], model: bytes | None = None) -> Tokenizer:
    """The tokenizer with this config.

    Args:
      config: as `Tokenizer.to_config` returned it.
      model: the SentencePiece model, required for BPE; its SHA-256 must be that of the config.

    Raises:
      ValueError: an unknown kind of tokenizer, or a missing or wrong model.
    """
    if config["kind"] == "bytes":
        return ByteTokenizer(config["num_labels"])
    if config["kind"] != "bpe":
        raise ValueError(f'found a tokenizer of kind {config["kind"]!r}, expected "bytes" or "bpe"')
    if model is None:
        raise ValueError("found no tokenizer.model, which a BPE tokenizer needs")
    tokenizer = BpeTokenizer(model, config["num_labels"])
    if tokenizer.sha256 != config["model_sha256"]:
        raise ValueError(
            f"the tokenizer.model has SHA-256 {tokenizer.sha256}, expected "
            f"{config['model_sha256']}: use the file that was saved with this representation"
        )
    return tokenizer


def train_bpe(
    documents: Iterable[bytes], vocab_size: int = 320, *, max_piece_bytes: int = 16
) -> bytes:
    """Trains a SentencePiece BPE model on codec bytes; `BpeTokenizer(model)` uses it.

    Deterministic: the model depends only on the set of documents and the options, not on the order
    of documents or the number of threads. SentencePiece keeps every pair in memory, about 50 bytes
    for each byte of the documents, so pass a sample of them (JPEG-LM used 10,000 images).

    Options that differ from SentencePiece's defaults, which are made for text:
      * Any bytes can be encoded: character_coverage is 1 and the corpus includes all 256
        characters; so UNK never occurs, and byte_fallback stays off.
      * No byte is added or changed: identity normalisation, no dummy prefix, no whitespace removed.
      * No document is ignored: max_sentence_length (4,192 bytes, three per character) is raised.
        Documents are split every 65,535 bytes, because SentencePiece before 0.2.3 aborts on longer
        ones; only pairs across a split are not counted.
      * Merges may be of any bytes: the splits at scripts, numbers and white space are off.

    Args:
      documents: codec bytes of each document, read once.
      vocab_size: number of pieces: UNK (0), BOS (1), EOS (2), merges, 256 characters. So 320 leaves
        61 merges. Label tokens are not counted; the tokenizer adds them.
      max_piece_bytes: max bytes of a piece, 1 to 512; 16 is SentencePiece's default.

    Raises:
      ValueError: an option is out of range, or the documents hold too few different pairs for
        vocab_size.
    """
    return train_pieces(
        documents,
        vocab_size,
        to_text=_to_characters,
        characters=_to_characters(bytes(range(256))),
        max_piece_length=max_piece_bytes,
    )


def train_pieces(
    documents: Iterable[bytes],
    vocab_size: int,
    *,
    to_text: Callable[[bytes], str],
    characters: str,
    max_piece_length: int,
    control_symbols: Sequence[str] = (),
) -> bytes:
    """Learns a SentencePiece BPE model from documents written as text; see `train_bpe`.

    Args:
      documents: codec bytes of each document, read once.
      vocab_size: all pieces: UNK (0), BOS (1), EOS (2), control symbols, merges, characters.
      to_text: writes a document as text.
      characters: all that it may write; each gets a piece.
      max_piece_length: longest piece, 1 to 512 characters.
      control_symbols: names of further special pieces.

    Raises:
      ValueError: as `train_bpe`.
    """
    smallest = 3 + len(control_symbols) + len(characters)
    if not smallest <= vocab_size <= _MAX_VOCAB_SIZE:
        raise ValueError(
            f"found vocab_size={vocab_size}; expected {smallest} ({3 + len(control_symbols)} "
            f"specials and {len(characters)} characters) to {_MAX_VOCAB_SIZE}"
        )
    if not 1 <= max_piece_length <= 512:
        raise ValueError(f"found a longest piece of {max_piece_length}; expected 1 to 512")
    corpus = _Corpus(documents, to_text, characters)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=list(control_symbols),
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 30,
            max_sentencepiece_length=max_piece_length,
            split_by_unicode_script=False,
            split_by_number=False,
            split_by_whitespace=False,
            split_digits=False,
            byte_fallback=False,
            minloglevel=1,
        )
    except (RuntimeError, SystemError) as error:
        if corpus.error is not None:
            raise corpus.error from None
        raise ValueError(
            f"SentencePiece could not train {vocab_size} pieces from {corpus.num_documents} "
            f"documents of {corpus.num_bytes} bytes; give more documents or a smaller vocab_size "
            f"({error})"
        ) from error
    return model.getvalue()


class _Corpus:
    """Documents as the sentences that SentencePiece trains on.

    Keeps an error raised while reading documents, which SentencePiece would replace by its own.
    """

    def __init__(
        self, documents: Iterable[bytes], to_text: Callable[[bytes], str], characters: str
    ):
        self.num_documents = 0
        self.num_bytes = 0
        self.error: Exception | None = None
        self._documents = documents
        self._to_text = to_text
        self._characters = characters

    def __iter__(self) -> Iterator[str]:
        # A sentence of one character counts the character and no pair. SentencePiece computes the
        # coverage in float32, where one of 2**25 characters is none: so each comes more often.
        for _ in range(_CHARACTER_COUNT):
            yield from self._characters
        try:
            for data in self._documents:
                self.num_documents += 1
                self.num_bytes += len(data)
                text = self._to_text(data)
                for start in range(0, len(text), _MAX_SENTENCE):
                    yield text[start : start + _MAX_SENTENCE]
        except Exception as error:
            self.error = error
            raise


def _to_characters(data: bytes) -> str:
    """Byte b -> chr(10240 + b)."""
    characters = np.frombuffer(data, np.uint8).astype("<u2") + np.uint16(_FIRST_CHARACTER)
    return characters.astype("<u2").tobytes().decode("utf-16-le")


def _piece_bytes(piece: str) -> bytes | None:
    """The bytes of a piece without a dummy prefix; None if it has other characters."""
    codes = [ord(character) - _FIRST_CHARACTER for character in piece.replace(_WORD_BOUNDARY, "")]
    return bytes(codes) if all(0 <= code < 256 for code in codes) else None
