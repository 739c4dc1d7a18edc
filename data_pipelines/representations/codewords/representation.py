"""The base of representations whose tokens may be whole code words: bytes, BPE, or code words."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from data_pipelines.representations.base import TokenizedRepresentation
from data_pipelines.representations.codewords import tokenizer as codeword_tokenizer
from data_pipelines.representations.codewords.alphabet import Streams
from data_pipelines.representations.tokenizer import Tokenizer


class CodewordRepresentation(TokenizedRepresentation):
    """A representation of media as codec bytes that its `streams` read and write as code words."""

    @classmethod
    def load_tokenizer(cls, spec: str, num_labels: int, options: Mapping[str, Any]) -> Tokenizer:
        """See `TokenizedRepresentation.load_tokenizer`; "codewords" is one id per code word."""
        found = codeword_tokenizer.load(spec, num_labels, cls._streams_of(options))
        return found or super().load_tokenizer(spec, num_labels, options)

    @classmethod
    def tokenizer_from_config(
        cls, config: dict[str, Any], model: bytes | None, options: Mapping[str, Any]
    ) -> Tokenizer:
        """See `TokenizedRepresentation.tokenizer_from_config`."""
        if config["kind"] == codeword_tokenizer.KIND:
            return codeword_tokenizer.from_config(config, model, cls._streams_of(options))
        return super().tokenizer_from_config(config, model, options)

    @classmethod
    def _streams_of(cls, options: Mapping[str, Any]) -> Streams:
        """The streams of a representation with these options; unknown ones are ignored here."""
        made: Any = cls  # a dataclass of plain options, as every representation
        fields = {field.name for field in dataclasses.fields(made)}
        return made(**{name: options[name] for name in fields & set(options)}).streams

    def train_tokenizer(self, documents: Iterable[bytes], vocab_size: int, kind: str) -> bytes:
        """See `TokenizedRepresentation.train_tokenizer`; kind may also be "codewords"."""
        if kind == codeword_tokenizer.KIND:
            return codeword_tokenizer.train(documents, self.streams, vocab_size)
        return super().train_tokenizer(documents, vocab_size, kind)

    @property
    @abc.abstractmethod
    def streams(self) -> Streams:
        """Reads and writes the streams as code words."""
