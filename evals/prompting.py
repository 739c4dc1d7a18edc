"""Originals, prompts of them, and what a model makes of these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.representations import contact_sheet
from data_pipelines.representations.base import Representation
from evals import likelihood as bits
from evals.inputs.documents import Document, Documents
from jpeglm_jax.generation.prompts import Request
from jpeglm_jax.model.trained import TrainedModel

_SHOWN = 8  # originals in a grid


class Prompted(NamedTuple):
    """An original and how the model is started on it.

    Attributes:
      document: the original.
      start_token: BOS or its label's token.
      prompts: by column of the table, the tokens that are given after it.
    """

    document: Document
    start_token: int
    prompts: Mapping[str, np.ndarray]


def prompted(
    model: TrainedModel, documents: Documents, columns: Mapping[str, float], given: str
) -> tuple[list[Prompted], list[tuple[str, str]]]:
    """Originals with prompts for all columns, and (name, reason) of those that have none.

    An original that cannot be prompted at one ratio is left out at all, so that columns compare.
    """
    result, left_out = [], []
    for document in documents:
        start_token = bits.start_tokens(given, model.representation, document)[0]
        try:
            prompts = {
                name: model.representation.prompt(document.tokens, ratio)
                if ratio
                else document.tokens[:0]
                for name, ratio in columns.items()
            }
        except ValueError as error:
            left_out.append((document.key, str(error)))
            continue
        longest = max(map(len, prompts.values()))
        if longest + 1 >= model.config.seq_len:
            reason = f"a prompt of {longest} tokens fills the {model.config.seq_len} places"
            left_out.append((document.key, reason))
            continue
        result.append(Prompted(document, start_token, prompts))
    left_out += documents.rejected
    if not result:
        name, reason = left_out[0]
        raise ValueError(
            f"no image of {documents.name} can be completed; the first, {name}: {reason}"
        )
    return result, left_out


def requests(
    representation: Representation, originals: Sequence[Prompted], column: str
) -> list[Request]:
    """What a generation job is asked for to complete all originals in one column."""
    return [
        Request(
            np.concatenate([[each.start_token], each.prompts[column]]).astype(np.int32),
            -1 if each.start_token == representation.bos else each.document.label,
            each.document.key,
        )
        for each in originals
    ]


def digest(originals: Sequence[Prompted]) -> str:
    """16 hex digits over the names, tokens and start tokens of all originals."""
    found = hashlib.sha256()
    for each in originals:
        found.update(json.dumps([each.document.key, each.start_token]).encode())
        found.update(np.asarray(each.document.tokens, "<u2").tobytes())
    return found.hexdigest()[:16]


def grid(
    model: TrainedModel,
    originals: Sequence[Prompted],
    column: str,
    folders: Sequence[epath.Path],
    path: epath.Path,
) -> None:
    """Writes a picture with a line for each of the first originals: itself, prompt, completions.

    Args:
      model: that completed them.
      originals: all of them.
      column: which of their prompts.
      folders: what was drawn of them, one a seed.
      path: of the PNG file.
    """
    tiles = []
    for number, each in enumerate(originals[:_SHOWN]):
        tiles.append(contact_sheet.pictures(model.representation, each.document.tokens))
        tiles.append(contact_sheet.pictures(model.representation, each.prompts[column]))
        tiles += [_drawn(model, folder, number) for folder in folders]
    contact_sheet.save(contact_sheet.sheet_of(tiles, 2 + len(folders)), path)


def _drawn(model: TrainedModel, folder: epath.Path, number: int) -> list[Image.Image]:
    path = folder / f"{number:06d}{model.representation.suffix}"
    if not path.is_file():
        return []
    try:
        tokens = model.representation.from_bytes(path.read_bytes())
    except ValueError:  # its header is damaged
        return []
    return contact_sheet.pictures(model.representation, tokens)
