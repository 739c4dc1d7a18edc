"""Letters and their characters: what the alphabets of all codecs share.

A *letter* is a single byte (letters 0-255) or a code word of the codec. Bytes stand for what is no
sequence of code words. Letters are written as characters in a SentencePiece model: byte b as
chr(0x2800 + b), letter 256 + w as chr(0x4E00 + w).
"""

from __future__ import annotations

import abc
import functools
import hashlib
import json
from typing import Any, Protocol

import numpy as np

from data_pipelines.representations.tokenizer import CODEWORDS

NUM_BYTES = 256

_FIRST_BYTE_CHARACTER = 0x2800
_FIRST_WORD_CHARACTER = 0x4E00


class Alphabet(abc.ABC):
    """The letters of streams with the same tables of codes. Subclasses are frozen dataclasses."""

    @property
    @abc.abstractmethod
    def family(self) -> str:
        """The codec, and which of its alphabets: "jpeg_codewords:RGB"."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of letters, the 256 bytes included."""

    @abc.abstractmethod
    def describe(self) -> list[dict[str, Any]]:
        """Each letter with its character and meaning, as plain JSON values."""

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the meaning of all letters, in hex."""
        text = json.dumps(self.describe(), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """The name of the alphabet in the models that are trained on it."""
        return f"<{self.family}:{self.sha256[:16]}>"


class Streams(Protocol):
    """Reads and writes the letters of streams of fixed settings. A frozen, hashable value."""

    @property
    def alphabet(self) -> Alphabet:
        """The letters."""

    @property
    def has_meaning(self) -> np.ndarray:
        """Which letters stand for bytes in these streams, bool [letters]."""

    def read(self, stream: bytes) -> np.ndarray:
        """Any bytes -> letters, uint16 [n]; `write` gives the same bytes back."""

    def write(self, letters: np.ndarray) -> bytes:
        """Letters, integer [n] in range(len(alphabet)), in any order -> bytes."""


def is_name(piece: str) -> bool:
    """Whether a piece of a SentencePiece model is the `name` of an alphabet."""
    return CODEWORDS.match(piece) is not None


def character(letter: int) -> str:
    """The character of a letter in a SentencePiece model."""
    if letter < NUM_BYTES:
        return chr(_FIRST_BYTE_CHARACTER + letter)
    return chr(_FIRST_WORD_CHARACTER + letter - NUM_BYTES)


def to_text(letters: np.ndarray) -> str:
    """Letters, integer [n] -> their characters."""
    letters = letters.astype("<u2")
    shift = np.where(
        letters < NUM_BYTES, _FIRST_BYTE_CHARACTER, _FIRST_WORD_CHARACTER - NUM_BYTES
    ).astype("<u2")
    return (letters + shift).tobytes().decode("utf-16-le")


def from_text(text: str, num_letters: int) -> np.ndarray | None:
    """Characters -> letters, int32 [n]; None if any is no character of an alphabet of this size."""
    codes = np.array([ord(one) for one in text], np.int64)
    is_byte = (codes >= _FIRST_BYTE_CHARACTER) & (codes < _FIRST_BYTE_CHARACTER + NUM_BYTES)
    letters = np.where(
        is_byte, codes - _FIRST_BYTE_CHARACTER, codes - _FIRST_WORD_CHARACTER + NUM_BYTES
    )
    known = is_byte | ((letters >= NUM_BYTES) & (letters < num_letters))
    return letters.astype(np.int32) if known.all() else None
