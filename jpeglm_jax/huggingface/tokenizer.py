"""Tokenizer files for `transformers`: text of one character per byte <-> token ids.

Byte b is the character chr(10240 + b), as in JPEG-LM (arXiv 2408.08459); code words have characters
of their own (`data_pipelines.representations.codewords`). A SentencePiece model is exported
unchanged, for LlamaTokenizer. One token per character becomes a tokenizer.json that splits a text
into its characters. Label tokens are added tokens, written `<label_K>`. `convert to_hf` writes
them.
"""

from __future__ import annotations

import json
from typing import Any

import sentencepiece
from etils import epath

from data_pipelines.representations.tokenizer import TOKENIZER_FILE, Tokenizer

CONFIG_FILE = "tokenizer_config.json"
FAST_FILE = "tokenizer.json"


def label_name(label: int) -> str:
    """The text form of the token of a label."""
    return f"<label_{label}>"


def write(folder: epath.Path, tokenizer: Tokenizer, seq_len: int) -> None:
    """Writes the files that `AutoTokenizer.from_pretrained` needs, next to a SentencePiece model.

    The tokenizer puts BOS before a text, and no EOS after it, so that the model can continue it.
    """
    if TOKENIZER_FILE in tokenizer.files:
        config = _sentencepiece_config(tokenizer)
    else:
        _write_json(folder / FAST_FILE, _character_tokenizer(tokenizer))
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | _BYTE_SPECIALS
    common = {"clean_up_tokenization_spaces": False, "model_max_length": seq_len}
    _write_json(folder / CONFIG_FILE, config | common)


_BYTE_SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


def _sentencepiece_config(tokenizer: Tokenizer) -> dict[str, Any]:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.files[TOKENIZER_FILE])
    labels = {
        str(tokenizer.label_token(k)): _added(label_name(k)) for k in range(tokenizer.num_labels)
    }
    return {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": pieces.id_to_piece(tokenizer.bos),
        "eos_token": pieces.id_to_piece(tokenizer.eos),
        "unk_token": pieces.id_to_piece(pieces.unk_id()),
        "add_bos_token": True,
        "add_eos_token": False,
        # A text is split exactly as by the SentencePiece model, without added spaces.
        "legacy": True,
        "spaces_between_special_tokens": False,
        "added_tokens_decoder": labels,
    }


def _character_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer.json: BPE of characters without merges, with BOS before every text."""
    specials = {"<s>": tokenizer.bos, "</s>": tokenizer.eos}
    specials |= {label_name(k): tokenizer.label_token(k) for k in range(tokenizer.num_labels)}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token} | _added(name) for name, token in specials.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first],
            "pair": [start, first, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [tokenizer.bos], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {character: token for token, character in enumerate(tokenizer.characters)},
            "merges": [],
        },
    }


def _added(name: str) -> dict[str, Any]:
    return {
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _write_json(path: epath.Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
