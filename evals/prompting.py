"""Prompts cut from real images, generation requests for them, and grids of the completions.

`evals.completion` generates and evaluates the completions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from data_pipelines.representations import contact_sheet
from data_pipelines.representations.base import Representation
from evals.codelength.conditioning import start_tokens
from evals.inputs.documents import Document, Documents
from jpeglm_jax.generation.manifest import read_manifest
from jpeglm_jax.generation.prompts import Request
from jpeglm_jax.generation.tokens import Tokens
from jpeglm_jax.model.trained import TrainedModel

_GRID_ROWS = 8  # originals in a grid


class PromptedDocument(NamedTuple):
    """An original and its prompts.

    Attributes:
      document: the original.
      start_token: BOS or the token of its label.
      prompts: by column of the table, the tokens after the start token, integer [n].
    """

    document: Document
    start_token: int
    prompts: Mapping[str, np.ndarray]


def make_prompts(
    model: TrainedModel, documents: Documents, columns: Mapping[str, float], conditioning: str
) -> tuple[list[PromptedDocument], list[tuple[str, str]]]:
    """Cuts prompts of all columns from each document.

    A document that cannot be prompted at one ratio is excluded from all columns, so that columns
    are comparable.

    Args:
      model: the model to prompt.
      documents: the originals, of the model's representation.
      columns: name -> share of the image in the prompt; 0: no prompt.
      conditioning: "label" or "none".

    Returns:
      (prompted documents, (name, reason) of the excluded and rejected ones).

    Raises:
      ValueError: no document can be prompted.
    """
    result, excluded = [], []
    for document in documents:
        start_token = start_tokens(conditioning, model.representation, document)[0]
        try:
            prompts = {
                name: model.representation.prompt(document.tokens, ratio)
                if ratio
                else document.tokens[:0]
                for name, ratio in columns.items()
            }
        except ValueError as error:
            excluded.append((document.key, str(error)))
            continue
        longest = max(map(len, prompts.values()))
        if longest + 1 >= model.config.seq_len:
            reason = (
                f"a prompt of {longest} tokens fills the sequence length of {model.config.seq_len}"
            )
            excluded.append((document.key, reason))
            continue
        result.append(PromptedDocument(document, start_token, prompts))
    excluded += documents.rejected
    if not result:
        name, reason = excluded[0]
        raise ValueError(
            f"no image of {documents.name} can be completed; the first, {name}: {reason}"
        )
    return result, excluded


def requests(
    representation: Representation,
    originals: Sequence[PromptedDocument],
    column: str,
    ratio: float,
) -> list[Request]:
    """The generation requests that complete all originals of one column.

    Args:
      representation: of the model.
      originals: with their prompts.
      column: of the prompts.
      ratio: share of the image in the prompts of this column.
    """
    return [
        Request(
            np.concatenate([[each.start_token], each.prompts[column]]).astype(np.int32),
            -1 if each.start_token == representation.bos else each.document.label,
            each.document.key,
            ratio,
        )
        for each in originals
    ]


def digest(originals: Sequence[PromptedDocument]) -> str:
    """16 hex digits over the names, tokens and start tokens of all originals."""
    found = hashlib.sha256()
    for each in originals:
        found.update(json.dumps([each.document.key, each.start_token]).encode())
        found.update(np.asarray(each.document.tokens, "<u4").tobytes())
    return found.hexdigest()[:16]


def grid(
    model: TrainedModel,
    originals: Sequence[PromptedDocument],
    column: str,
    folders: Sequence[epath.Path],
    path: epath.Path,
) -> None:
    """Writes a picture with a row for each of the first originals: itself, prompt, completions.

    Args:
      model: the model of the completions.
      originals: all originals, in the order of the requests.
      column: of the prompts.
      folders: of the generated completions, one per seed.
      path: of the PNG file.
    """
    recorded = [Tokens(folder, read_manifest(folder)) for folder in folders]
    tiles = []
    for number, each in enumerate(originals[:_GRID_ROWS]):
        tiles.append(contact_sheet.pictures(model.representation, each.document.tokens))
        tiles.append(contact_sheet.pictures_of_prefix(model.representation, each.prompts[column]))
        completions = [tokens[number] for tokens in recorded]
        tiles += [contact_sheet.pictures(model.representation, each) for each in completions]
    contact_sheet.save(contact_sheet.sheet_of(tiles, 2 + len(folders)), path)
