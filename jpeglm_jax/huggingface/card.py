"""The model card of an exported checkpoint: its weights, its tokens, and from tokens to a file.

`convert to_hf` writes it as README.md.
"""

from __future__ import annotations

import json

from etils import epath

from data_pipelines.representations.base import Representation, TokenizedRepresentation
from data_pipelines.representations.codewords.tokenizer import CodewordTokenizer
from data_pipelines.representations.tokenizer import BpeTokenizer, ByteTokenizer
from jpeglm_jax.model.config import ModelConfig

CARD_FILE = "README.md"

_CARD = """\
---
library_name: transformers
tags: [{tags}]
---

# A Llama on {subject}

A Llama of {parameters:,} parameters: {layers} layers, width {width}, weights in {dtype}. It was
trained on {content}.
It continues such documents and was trained on no text. Its sequence length is {seq_len:,} tokens.

## What a token is

{tokens} A document begins with {starts} and ends with id {eos}. How it was
encoded (`representation.json`):

```json
{representation}
```

## From tokens to {medium}

The project `jpeglm_jax` reads the representation from this folder:

```python
import torch
from transformers import AutoModelForCausalLM
from data_pipelines import representations

FOLDER = "."
representation = representations.load(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
start = torch.tensor([[{start}]])
row = model.generate(start, max_length={seq_len})[0, 1:].tolist()
tokens = row[: row.index({eos})] if {eos} in row else row
print(representation.validate(tokens))  # strictly valid, or the first error
{save}
```

{note}vLLM takes the start
token as ids, `{{"prompt_token_ids": [{start}]}}`, and returns ids with
`SamplingParams(detokenize=False)`.{guidance}

## Tokens as text

{text}
"""

_CODEC = {
    "tags": "jpeg-lm, codec",
    "content": "the tokens of media as a canonical codec writes them, after JPEG-LM\n"
    "(arXiv 2408.08459)",
    "medium": "a file",
    "note": "`to_bytes` adds the constant parts of a file, which are not among the tokens. ",
}
_NO_CODEC = {
    "tags": "image-generation",
    "subject": "images as tokens",
    "content": "the tokens of images, without a codec",
    "medium": "an image",
    "note": "",
    "save": 'representation.decode(tokens).save("sample.png")',
}

_GUIDANCE = """

The run sampled with classifier-free guidance of {guidance}, which `generation_config.json` does not
contain: give `generate` the label's start token as prompt, `guidance_scale={guidance}`, and the
start token of unlabelled documents as `negative_prompt_ids`."""

_BYTES_TEXT = """\
The weights were trained on ids 0 to 255, the bytes themselves, without a tokenizer.
`tokenizer.json` is for programs that require one. It writes byte b as the character
`chr(10240 + b)` and puts id {bos} before a text:

```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
ids = tokenizer("".join(chr(10240 + byte) for byte in data))["input_ids"]
text = tokenizer.decode(ids, skip_special_tokens=True)
assert data == bytes(ord(character) - 10240 for character in text)
```"""

_BPE_TEXT = """\
`tokenizer.model` is the SentencePiece model that the weights were trained with. It writes byte b as
the character `chr(10240 + b)`, and id {bos} is put before a text. Version 4 of `transformers` needs
the slow tokenizer (`use_fast=False`), version 5 the packages sentencepiece and protobuf:

```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, use_fast=False)
ids = tokenizer("".join(chr(10240 + byte) for byte in data))["input_ids"]
text = tokenizer.decode(ids, skip_special_tokens=True).strip()
assert data == bytes(ord(character) - 10240 for character in text)
```"""

_CODEWORDS_TEXT = """\
A token stands for whole code words of the JPEG scan. `alphabet.json` lists the character, the
meaning and the bits of each. The ids of a text of these characters have id {bos} before them:

```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, use_fast=False)
text = representation.tokenizer.to_text(data)
ids = tokenizer(text)["input_ids"]
assert data == representation.tokenizer.decode(ids[1:])
```"""

_NO_TEXT = "These tokens have no form as text, so there is no tokenizer: pass ids to the model."


def write(
    folder: epath.Path,
    model: ModelConfig,
    representation: Representation,
    *,
    parameters: int,
    seq_len: int,
    dtype: str,
    guidance: float = 1.0,
) -> None:
    """Writes README.md.

    Args:
      folder: of the exported checkpoint.
      model: its shape.
      representation: what its tokens mean.
      parameters: number of its weights.
      seq_len: its sequence length.
      dtype: stored type of the weights.
      guidance: the run's scale of classifier-free guidance; 1: none.
    """
    tokens, text = _tokens(representation)
    card = _CARD.format(
        **_described(representation),
        parameters=parameters,
        layers=model.layers,
        width=model.width,
        dtype=dtype,
        seq_len=seq_len,
        tokens=tokens,
        starts=_starts(representation),
        start="representation.label_token(0)"
        if representation.num_labels
        else str(representation.bos),
        eos=representation.eos,
        representation=json.dumps(representation.to_config(), indent=2, allow_nan=False),
        text=text,
        guidance="" if guidance == 1 else _GUIDANCE.format(guidance=guidance),
    )
    (folder / CARD_FILE).write_text(card)


def _described(representation: Representation) -> dict[str, str]:
    """What of the card depends on whether documents are a codec's."""
    if not isinstance(representation, TokenizedRepresentation):
        return _NO_CODEC
    suffix = representation.suffix
    save = f'open("sample{suffix}", "wb").write(representation.to_bytes(tokens))'
    return _CODEC | {"subject": f"the content of {suffix} files", "save": save}


def _tokens(representation: Representation) -> tuple[str, str]:
    """(the meaning of ids, their form as text)."""
    tokenizer = getattr(representation, "tokenizer", None)
    if isinstance(tokenizer, BpeTokenizer):
        pieces = f"Ids are those of the {tokenizer.first_label} pieces of `tokenizer.model`."
        return pieces, _BPE_TEXT.format(bos=representation.bos)
    if isinstance(tokenizer, ByteTokenizer):
        return "Ids 0 to 255 are bytes.", _BYTES_TEXT.format(bos=representation.bos)
    if isinstance(tokenizer, CodewordTokenizer):
        trained = f"the {tokenizer.first_label} pieces of `tokenizer.model`"
        letters = f"the {len(tokenizer.characters)} letters of `alphabet.json`"
        pieces = f"Ids are those of {trained if tokenizer.model else letters}."
        return pieces, _CODEWORDS_TEXT.format(bos=representation.bos)
    return f"Ids are those of the representation `{representation.name}`.", _NO_TEXT


def _starts(representation: Representation) -> str:
    if not representation.num_labels:
        return f"id {representation.bos}"
    first, last = (representation.label_token(k) for k in (0, representation.num_labels - 1))
    return (
        f"the token of its label (ids {first} to {last}, `<label_0>` and on), or without one with "
        f"id {representation.bos},"
    )
