"""A small CLIP and a small tokenizer that both sides of the comparison make, from NumPy alone."""

import zlib

import numpy as np

VISION = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 16,
}
PROJECTION = 48
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = [
    *(("t", "h"), ("th", "e</w>"), ("a", "n"), ("an", "d</w>"), ("o", "f</w>"), ("p", "h")),
    *(("ph", "o"), ("t", "o</w>"), ("pho", "to</w>"), ("c", "a"), ("ca", "t</w>"), ("d", "o")),
    *(("do", "g</w>"), ("'", "s</w>"), ("Ã", "©</w>"), ("i", "n"), ("in", "g</w>"), ("!", "!</w>")),
    *(("a", "f"), ("c", "af"), ("s", "t"), ("'", "t</w>"), ("1", "2</w>"), (".", ".")),
]
TEXTS = [
    "a photo of a cat",
    "The dogs and the CAT's photo, 123 don't!!",
    "  spaces\tand\n\nlines  ",
    "café CAFÉ cafe\u0301 naïve Straße ÅNGSTRÖM",
    "ΣΊΣΥΦΟΣ ДОМ 日本語 नमस्ते 👩‍🔬 ½ ²³ Ⅷ",
    "they're we'll I'd I've I'm it's'S ''t",
    "...!?--- #hash @at a_b",
    "",
    " ",
    "<|endoftext|> in the middle <|startoftext|>",
    "thing and nothing of the sort, repeated many times over: " * 3,
    "\x1f\x00 control \u200b zero width \ufeff",
    "İstanbul ﬁne Ǆ",
]


def letters():
    """The characters of byte-level BPE, in the order of the published vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return list(map(chr, printable)) + [chr(256 + n) for n in range(256 - len(printable))]


def vocabulary():
    own = letters()
    tokens = [*own, *(letter + "</w>" for letter in own), *map("".join, MERGES)]
    return {token: number for number, token in enumerate([*tokens, START, END])}


def draw(name, shape):
    """The tensor of this name in the files of `transformers`, float32."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if "norm" in name or "layrnorm" in name:
        return random.normal("bias" not in name, 0.2, shape).astype(np.float32)
    spread = (
        1.0 if "embedding" in name and "patch" not in name else 1.2 * (shape or (1,))[-1] ** -0.5
    )
    return random.normal(0, spread, shape).astype(np.float32)


def images():
    """float32 [2, 56, 56, 3], as normalised images are."""
    return np.random.RandomState(3).normal(0, 1, (2, 56, 56, 3)).astype(np.float32)
