"""Prints how many of some thousand texts get the ids of `transformers`, with CLIP's vocabulary.

    git clone https://github.com/openai/CLIP
    pip install -e '.[parity]'
    python tests/golden/clip/published_vocabulary.py CLIP/clip/bpe_simple_vocab_16e6.txt.gz

The texts are the lines of the documentation, and drawn characters of many scripts.
"""

import gzip
import pathlib
import random
import sys

import numpy as np
import transformers
from weights import END, START, letters

from evals.features.clip.tokenizer import ClipTokenizer

NUM_TOKENS, LENGTH = 49_408, 77
DOCS = pathlib.Path(__file__).parents[3] / "docs"
SCRIPTS = (
    *((0x20, 0x7F), (0xA0, 0x370), (0x370, 0x530), (0x600, 0x670), (0x900, 0x980)),
    *((0x2000, 0x2070), (0x2190, 0x2200), (0x3040, 0x3100), (0x4E00, 0x4E80), (0xAC00, 0xAC40)),
    *((0xFB00, 0xFB07), (0x1F300, 0x1F650)),
)


def texts():
    found = [line.strip() for path in sorted(DOCS.rglob("*.md")) for line in path.open()]
    drawn = random.Random(0)
    characters = [chr(code) for first, end in SCRIPTS for code in range(first, end)]
    for _ in range(3000):
        words = [
            drawn.choice(characters if drawn.random() < 0.4 else "the quick brown 123's don't ")
            for _ in range(drawn.randint(1, 50))
        ]
        found.append("".join(words))
    return found


if __name__ == "__main__":
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : NUM_TOKENS - 512 - 2 + 1]]
    own = letters()
    tokens = [*own, *(letter + "</w>" for letter in own), *map("".join, merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    assert len(vocabulary) == NUM_TOKENS
    theirs = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
    options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    expected = np.array(theirs(texts(), **options)["input_ids"])
    ours = ClipTokenizer(vocabulary, merges)
    found = np.stack([ours.encode(text, LENGTH) for text in texts()])
    print((found == expected).all(1).sum(), "of", len(found), "texts have equal ids")
