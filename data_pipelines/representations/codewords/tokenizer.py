"""Tokens of whole code words: one id for each letter of the alphabet, or BPE over letters.

| ids          | without a model      | with a SentencePiece model                            |
|--------------|----------------------|-------------------------------------------------------|
| bytes        | 0-255                | pieces of one character, chr(0x2800 + byte)           |
| code words   | 256 to 255 + w       | pieces of characters chr(0x4E00 + w), see `alphabet`  |
| BOS, EOS     | 256 + w, 257 + w     | the model's own (1 and 2 as trained here; 0 is UNK)   |
| label k      | 258 + w + k          | number of pieces + k                                  |

w is the number of the codec's code words (docs/codewords.md).

A trained model names its alphabet in a control piece, such as `<jpeg_codewords:MODE:HASH>`, so a
model for other code tables is refused. In `transformers` the model is read like that of
`representations.tokenizer`; the text of a stream is `CodewordTokenizer.to_text`. `alphabet.json`,
next to a saved model, lists the character and the meaning of each letter.

Tokens do not stand for whole bytes: the number of codec bytes is a property of a document,
`len(tokenizer.decode(tokens))`, not of its tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import sentencepiece
from etils import epath

from data_pipelines.representations import tokenizer as tokenizers
from data_pipelines.representations.codewords import alphabet as codewords
from data_pipelines.representations.codewords import compiled
from data_pipelines.representations.codewords.alphabet import Streams

SPEC = "codewords"  # of the tokenizer without a model, in configurations
KIND = "codewords"  # in `to_config`
ALPHABET_FILE = "alphabet.json"
_MERGES = "data_pipelines.representations.codewords.merges"


S = TypeVar("S", bound=Streams)


@dataclasses.dataclass(frozen=True, repr=False)
class CodewordTokenizer(tokenizers.Tokenizer, Generic[S]):
    """Streams of fixed settings <-> tokens of whole code words.

    Attributes:
      streams: reads and writes the letters of streams; its settings decide the alphabet.
      model: a SentencePiece model over the letters, as `train` makes it; None for one id a letter.
      num_labels: label tokens after all others.

    Raises:
      ValueError: not a SentencePiece model over this alphabet, or more than 65,536 ids.
    """

    streams: S
    model: bytes | None = None
    num_labels: int = 0

    def __post_init__(self) -> None:
        if self.model is not None:
            self._check_model()
        self._check_vocab_size()

    def _check_model(self) -> None:
        wanted, found = self.streams.alphabet.name, trained_alphabet(self.model or b"")
        if found != wanted:
            raise ValueError(
                f"the SentencePiece model was trained on the alphabet {found or 'of bytes'}, "
                f"expected {wanted}, that of these settings' code words; train one by prepare "
                "--train_tokenizer=N --tokenizer_kind=codewords"
            )
        processor = self._processor
        if processor.bos_id() < 0 or processor.eos_id() < 0:
            raise ValueError(
                f"the SentencePiece model has BOS id {processor.bos_id()} and EOS id "
                f"{processor.eos_id()}; expected both (-1 is none): train it with bos_id and eos_id"
            )
        single = {int(piece[0]) for piece in self._pieces if len(piece) == 1}
        missing = len(self.streams.alphabet) - len(single)
        if missing:
            raise ValueError(
                f"the SentencePiece model lacks a piece for {missing} letters of {wanted}; use one "
                "that has them all, as training makes it"
            )

    def __repr__(self) -> str:
        sha256 = None if self.model is None else self.model_sha256[:16]
        return (
            f"CodewordTokenizer(alphabet={self.streams.alphabet.name}, sha256={sha256}, "
            f"num_labels={self.num_labels})"
        )

    @functools.cached_property
    def model_sha256(self) -> str:
        """SHA-256 of the model, in hex; "" without one."""
        return "" if self.model is None else hashlib.sha256(self.model).hexdigest()

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return _processor(self.model or b"")

    def with_streams(self, streams: S) -> CodewordTokenizer[S]:
        """The same for other settings. Raises ValueError if its model is of other tables."""
        return self if streams == self.streams else dataclasses.replace(self, streams=streams)

    # Ids

    @property
    def bos(self) -> int:
        return len(self.streams.alphabet) if self.model is None else self._processor.bos_id()

    @property
    def eos(self) -> int:
        return len(self.streams.alphabet) + 1 if self.model is None else self._processor.eos_id()

    @property
    def first_label(self) -> int:
        if self.model is None:
            return len(self.streams.alphabet) + 2
        return self._processor.get_piece_size()

    @functools.cached_property
    def _pieces(self) -> tuple[np.ndarray, ...]:
        """The letters of each id below the labels; none for specials."""
        letters = len(self.streams.alphabet)
        none = np.zeros(0, np.int32)
        if self.model is None:
            return (*np.arange(letters, dtype=np.int32)[:, None], none, none)
        processor = self._processor
        pieces = []
        for token in range(processor.get_piece_size()):
            special = processor.is_control(token) or processor.is_unknown(token)
            text = "" if special else processor.id_to_piece(token)
            found = codewords.from_text(text, letters)
            pieces.append(none if found is None else found)
        return tuple(pieces)

    @functools.cached_property
    def token_letters(self) -> tuple[np.ndarray, ...]:
        """The letters each token stands for, int32 [n] each; none for specials and labels."""
        return self._pieces + (np.zeros(0, np.int32),) * self.num_labels

    @functools.cached_property
    def is_content(self) -> np.ndarray:
        """Which ids stand for letters that these streams have, bool [vocab_size]."""
        known = self.streams.has_meaning
        return np.array([bool(len(each)) and known[each].all() for each in self.token_letters])

    @functools.cached_property
    def _is_content(self) -> np.ndarray:
        return self.is_content

    @property
    def token_bytes(self) -> tuple[bytes, ...]:  # type: ignore[override]
        raise ValueError(
            "tokens of code words do not stand for whole bytes; count those of a document, "
            "len(tokenizer.decode(tokens))"
        )

    # Streams

    def encode(self, data: bytes) -> np.ndarray:
        """Any bytes -> tokens, uint16 [n]. Deterministic; `decode` gives the same bytes back."""
        return self.encode_letters(self.streams.read(data))

    def encode_batch(self, documents: Sequence[bytes], num_threads: int = -1) -> list[np.ndarray]:
        """`encode` of each document, uint16 [n] each. num_threads: of SentencePiece; -1 is all."""
        letters = [self.streams.read(data) for data in documents]
        if self.model is None or compiled.module(_MERGES) is not None:
            return [self.encode_letters(each) for each in letters]
        ids = self._processor.encode(
            [codewords.to_text(each) for each in letters], num_threads=num_threads
        )
        return [self._checked(each, tokens) for each, tokens in zip(letters, ids, strict=True)]

    def encode_letters(self, letters: np.ndarray) -> np.ndarray:
        """Letters, integer [n] -> tokens, uint16 [n]."""
        if self.model is None:
            return letters.astype(np.uint16)
        if compiled.module(_MERGES) is not None:
            return self._merges.encode(letters)
        return self._checked(letters, self._processor.encode(codewords.to_text(letters)))

    @functools.cached_property
    def _merges(self) -> Any:
        merges, processor = compiled.module(_MERGES), self._processor
        assert merges is not None
        scores = [processor.get_score(token) for token in range(len(self._pieces))]
        return merges.make_merges(self._pieces, scores, len(self.streams.alphabet))

    def _checked(self, letters: np.ndarray, ids: list[int]) -> np.ndarray:
        tokens = np.array(ids, np.uint16)
        held = int(self._lengths[tokens].sum())
        if held != len(letters):
            raise ValueError(
                f"the SentencePiece model encodes {held} of {len(letters)} code words; its "
                "normaliser loses some: use a model as training makes it"
            )
        return tokens

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(each) for each in self.token_letters], np.int64)

    @functools.cached_property
    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        """(the letters of all tokens, where those of each begin)."""
        flat = np.concatenate([*self.token_letters, np.zeros(1, np.int32)])
        return flat, np.cumsum(self._lengths) - self._lengths

    def letters(self, tokens: np.ndarray | Sequence[int]) -> np.ndarray:
        """Tokens, integer [n] -> letters, int32 [m].

        Raises ValueError for the first token that is not content, with its position.
        """
        ids = np.asarray(tokens)
        if ids.size == 0:
            return np.zeros(0, np.int32)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"expected integer tokens [n], found {ids.dtype} {list(ids.shape)}")
        known = (ids >= 0) & (ids < self.vocab_size)
        content = known & self.is_content[np.where(known, ids, 0)]
        if not content.all():
            position = int(np.argmin(content))
            token = int(ids[position])
            raise ValueError(
                f"token {token} ({self._name(token)}) at position {position} stands for no code "
                "words; cut start, end and label tokens off before decoding"
            )
        flat, begin = self._flat
        lengths = self._lengths[ids]
        inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return flat[np.repeat(begin[ids], lengths) + inside]

    def leading(self, tokens: np.ndarray, letters: np.ndarray) -> np.ndarray:
        """The tokens that a document begins with, as far as they hold only its leading letters.

        BPE merges code words across the end of those letters. Encoded alone they end in other
        tokens, which say that no merge follows: a model that is prompted with them goes astray.

        Args:
          tokens: of the document, integer [n].
          letters: that it begins with, integer [m].

        Raises ValueError for the first token that is not content, with its position.
        """
        own = self.letters(tokens)[: len(letters)]
        differ = own != letters[: len(own)]
        held = differ.argmax() if differ.any() else len(own)
        ends = np.cumsum(self._lengths[tokens])
        return tokens[: np.searchsorted(ends, held, side="right")]

    def decode(self, tokens: np.ndarray | Sequence[int]) -> bytes:
        """Tokens, integer [n], in any order -> bytes.

        Raises ValueError for the first token that is not content (a special, a label, an id outside
        the vocabulary, a letter that these streams do not have), with its position.
        """
        return self.streams.write(self.letters(tokens))

    def to_text(self, data: bytes) -> str:
        """Any bytes -> the text that the model's SentencePiece pieces cut."""
        return codewords.to_text(self.streams.read(data))

    def to_config(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "alphabet_sha256": self.streams.alphabet.sha256,
            "model_sha256": self.model_sha256,
            "num_labels": self.num_labels,
        }

    @property
    def characters(self) -> str:
        if self.model is not None:
            return ""
        return codewords.to_text(np.arange(len(self.streams.alphabet)))

    @property
    def files(self) -> Mapping[str, bytes]:
        """`ALPHABET_FILE`, JSON with each letter's meaning, and the SentencePiece model if any."""
        alphabet = self.streams.alphabet
        values = {"name": alphabet.name, "sha256": alphabet.sha256, "letters": alphabet.describe()}
        files = {ALPHABET_FILE: (json.dumps(values, indent=1) + "\n").encode()}
        return files if self.model is None else files | {tokenizers.TOKENIZER_FILE: self.model}


def trained_alphabet(model: bytes) -> str | None:
    """The name of the alphabet that a SentencePiece model was trained on; None for one of bytes.

    Raises ValueError for what is no SentencePiece model.
    """
    processor = _processor(model)
    for token in range(processor.get_piece_size()):
        if processor.is_control(token) and codewords.is_name(processor.id_to_piece(token)):
            return processor.id_to_piece(token)
    return None


def load(spec: str, num_labels: int, streams: S) -> CodewordTokenizer[S] | None:
    """The tokenizer that a configuration names; None if it is not one of code words.

    Args:
      spec: "codewords", or the path of a SentencePiece model trained on code words.
    """
    if spec == SPEC:
        return CodewordTokenizer(streams, None, num_labels)
    path = epath.Path(spec)
    if spec == "bytes" or not path.is_file():
        return None
    model = path.read_bytes()
    return CodewordTokenizer(streams, model, num_labels) if trained_alphabet(model) else None


def from_config(config: dict[str, Any], model: bytes | None, streams: S) -> CodewordTokenizer[S]:
    """The tokenizer that gave this `to_config`. Raises ValueError where a hash differs."""
    if config["alphabet_sha256"] != streams.alphabet.sha256:
        raise ValueError(
            f"the tokens are code words of the alphabet with SHA-256 {config['alphabet_sha256']}, "
            f"but these settings have {streams.alphabet.name}: the tables of codes differ"
        )
    wanted = config["model_sha256"]
    if wanted and model is None:
        raise ValueError(
            "a trained tokenizer is made of its model; give the bytes of tokenizer.model"
        )
    made = CodewordTokenizer(streams, model if wanted else None, config["num_labels"])
    if made.model_sha256 != wanted:
        raise ValueError(
            f"the tokenizer.model has SHA-256 {made.model_sha256}, expected {wanted}: use the file "
            "that was saved with this representation"
        )
    return made


def train(
    documents: Iterable[bytes], streams: Streams, vocab_size: int, *, max_piece_words: int = 16
) -> bytes:
    """Learns a SentencePiece BPE model over the code words of streams; see `train_bpe`.

    Args:
      documents: codec bytes of each document, read once.
      streams: their settings.
      vocab_size: all pieces: UNK (0), BOS (1), EOS (2), the alphabet's name (3), merges, letters.
      max_piece_words: longest piece, 1 to 512 code words.

    Raises:
      ValueError: an option is out of range, or the documents hold too few different pairs.
    """
    letters = np.arange(len(streams.alphabet))
    return tokenizers.train_pieces(
        documents,
        vocab_size,
        to_text=lambda data: codewords.to_text(streams.read(data)),
        characters=codewords.to_text(letters),
        max_piece_length=max_piece_words,
        control_symbols=(streams.alphabet.name,),
    )


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise ValueError(
            f"found {len(model)} bytes that are not a SentencePiece model ({error}); "
            "expected the contents of a tokenizer.model"
        ) from error
    return processor
