"""CLIP's tokenizer: lower case, words, byte-level BPE with a mark at the end of each word.

It reads the files that lie with the weights on Hugging Face, tokenizer.json or vocab.json and
merges.txt, and gives the ids of `transformers`' CLIPTokenizer. `evals.clip_score` uses it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from evals.features.base import WeightsError

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_SPECIAL = re.compile("|".join(map(re.escape, (START, END))))
_CONTRACTION = re.compile("'s|'t|'re|'ve|'m|'ll|'d")
# Unicode's White_Space, which Python's \s exceeds.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SPACES = re.compile(f"[{_SPACE}]+")
_CACHED_WORDS = 2**16


def _byte_letters() -> dict[int, str]:
    """A printable character for every byte: its own, or one from 256 on if that is none."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + number) for number, byte in enumerate(others)}


_LETTERS = _byte_letters()


class ClipTokenizer:
    """Text -> token ids.

    Attributes:
      start, end: ids of the first and the last token.
      sha256: of the vocabulary and the merges, 64 hex digits.
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]):
        """Raises WeightsError for a vocabulary without the start and end tokens."""
        missing = [name for name in (START, END) if name not in vocabulary]
        if missing:
            raise WeightsError(
                f"the vocabulary has no {' and no '.join(missing)}; expected that of CLIP"
            )
        self._ids = dict(vocabulary)
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.start, self.end = vocabulary[START], vocabulary[END]
        text = json.dumps([sorted(vocabulary.items()), list(merges)])
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._word = functools.lru_cache(_CACHED_WORDS)(self._encode_word)

    @classmethod
    def load(cls, folder: epath.PathLike) -> ClipTokenizer:
        """Reads the files of a folder, see the module docstring. Raises WeightsError."""
        folder = epath.Path(folder)
        whole, vocabulary = folder / "tokenizer.json", folder / "vocab.json"
        merges = folder / "merges.txt"
        try:
            if whole.is_file():
                model = json.loads(whole.read_text())["model"]
                pairs = [tuple(p.split(" ") if isinstance(p, str) else p) for p in model["merges"]]
                return cls(model["vocab"], pairs)
            if vocabulary.is_file() and merges.is_file():
                lines = merges.read_text().splitlines()
                pairs = [tuple(line.split()) for line in lines if line[:9] != "#version:"]
                return cls(json.loads(vocabulary.read_text()), [p for p in pairs if len(p) == 2])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"the tokenizer in {folder} is damaged: {error!r}") from error
        raise WeightsError(
            f"{folder} holds no tokenizer.json, and not both vocab.json and merges.txt; they lie "
            "with the weights on Hugging Face"
        )

    def encode(self, text: str, length: int) -> np.ndarray:
        """Ids int32 [length]: start, the text (cut if it is too long), end, and end again."""
        ids = [token for word in _words(_normalised(text)) for token in self._word(word)]
        ids = [self.start, *ids[: length - 2], self.end]
        return np.array(ids + [self.end] * (length - len(ids)), np.int32)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word in (START, END):
            return (self._ids[word],)
        parts = [_LETTERS[byte] for byte in word.encode()]
        parts[-1] += _WORD_END
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in itertools.pairwise(parts)]
            best = min(ranks)
            if best == len(self._ranks):
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return tuple(self._ids.get(part, self.end) for part in parts)


def _normalised(text: str) -> str:
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", text))
    # One character at a time: a sigma at the end of a word is like any other.
    return "".join(character.lower() for character in text)


def _words(text: str) -> Iterator[str]:
    """Runs of letters, single digits, runs of other characters, and English contractions."""
    at = 0
    while at < len(text):
        if found := (_SPECIAL.match(text, at) or _CONTRACTION.match(text, at)):
            yield found[0]
            at = found.end()
            continue
        kind, end = _kind(text[at]), at + 1
        while kind in "LO" and end < len(text) and _kind(text[end]) == kind:
            end += 1
        if kind != "S":
            yield text[at:end]
        at = end


def _kind(character: str) -> str:
    """L: letter, N: number, S: space, O: any other."""
    if _SPACES.match(character):
        return "S"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "O"
