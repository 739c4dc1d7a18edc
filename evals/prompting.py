"""Prompts cut from real images, generation requests for them, and grids of the completions.

`evals.completion` generates and evaluates the completions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


UNCONDITIONAL = "unconditional"  # the column without a prompt


class PromptedDocument(NamedTuple):
    """An original and its prompts.

    Attributes:
      document: the original.
      start_token: BOS or the token of its label.
      prompts: by ratio, the tokens after the start token, integer [n].
      shares: by ratio, the share of the image that its prompt holds.
    """

    document: Document
    start_token: int
    prompts: Mapping[float, np.ndarray]
    shares: Mapping[float, float]


class Column(NamedTuple):
    """A column of the table: the completions of one prompt of each original.

    Attributes:
      name: the mean share of the images that is given, or `UNCONDITIONAL`.
      ratio: that was asked for; 0: no prompt.
      share: mean share of the images that the prompts hold.
      share_range: the smallest and the largest share.
      ratios: all that give these same prompts.
    """

    name: str
    ratio: float
    share: float
    share_range: tuple[float, float]
    ratios: Sequence[float]

    @property
    def folder(self) -> str:
        return self.name if self.name == UNCONDITIONAL else f"ratio-{self.name}"

    def to_json(self) -> dict[str, Any]:
        least, most = self.share_range
        return {
            "prompt_share": self.share,
            "prompt_share_min": least,
            "prompt_share_max": most,
            "ratios": list(self.ratios),
        }


class Prompted(NamedTuple):
    """The prompts of all originals.

    Attributes:
      originals: those that can be completed in every column.
      columns: of the table, each with prompts of its own.
      excluded: (name, reason) of other originals, and of unreadable images.
      empty: ratio -> why it is no column.
    """

    originals: list[PromptedDocument]
    columns: list[Column]
    excluded: list[tuple[str, str]]
    empty: dict[float, str]


def make_prompts(
    model: TrainedModel, documents: Documents, ratios: Sequence[float], conditioning: str
) -> Prompted:
    """Cuts prompts of all ratios from each document.

    A prompt ends after a whole unit (JPEG: a row of MCUs), so it may hold less than its ratio. A
    ratio that holds nothing of any image is no column, and ratios with equal prompts are one. A
    document that cannot be prompted in one column is excluded from all, so that columns are
    comparable.

    Args:
      model: the model to prompt.
      documents: the originals, of the model's representation.
      ratios: shares of the image asked for; 0: no prompt.
      conditioning: "label" or "none".

    Raises:
      ValueError: no document can be prompted, or no ratio holds anything.
    """
    cut, excluded = [], []
    for document in documents:
        start_token = start_tokens(conditioning, model.representation, document)[0]
        try:
            prompted = _cut(model.representation, document, start_token, ratios)
        except ValueError as error:
            excluded.append((document.key, str(error)))
            continue
        longest = max(map(len, prompted.prompts.values()))
        if longest + 1 >= model.config.seq_len:
            reason = (
                f"a prompt of {longest} tokens fills the sequence length of {model.config.seq_len}"
            )
            excluded.append((document.key, reason))
            continue
        cut.append(prompted)
    excluded += documents.rejected
    if not cut:
        name, reason = excluded[0]
        raise ValueError(
            f"no image of {documents.name} can be completed; the first, {name}: {reason}"
        )
    empty = {
        ratio: f"a ratio of {ratio:g} holds no whole unit (JPEG: a row of MCUs) of any image"
        for ratio in ratios
        if ratio and not any(each.shares[ratio] for each in cut)
    }
    kept = [ratio for ratio in ratios if ratio not in empty]
    if not kept:
        raise ValueError(
            f"nothing to complete: {'; '.join(empty.values())}; give a larger ratio, or "
            "--unconditional"
        )
    originals = []
    for each in cut:
        nothing = [ratio for ratio in kept if ratio and not each.shares[ratio]]
        if nothing:
            excluded.append(
                (each.document.key, f"a ratio of {nothing[0]:g} holds no whole unit of it")
            )
        else:
            originals.append(each)
    if not originals:
        raise ValueError(
            f"no image of {documents.name} can be completed in every column; the first, "
            f"{excluded[0][0]}: {excluded[0][1]}"
        )
    return Prompted(originals, _columns(originals, kept), excluded, empty)


def _cut(
    representation: Representation, document: Document, start_token: int, ratios: Sequence[float]
) -> PromptedDocument:
    """A document with its prompts. Raises ValueError if one cannot be cut."""
    prompts, shares = {}, {}
    for ratio in ratios:
        prompts[ratio] = document.tokens[:0]
        shares[ratio] = 0.0
        if ratio:
            prompts[ratio] = representation.prompt(document.tokens, ratio)
            shares[ratio] = representation.prompt_share(document.tokens, ratio)
    return PromptedDocument(document, start_token, prompts, shares)


def _columns(originals: Sequence[PromptedDocument], ratios: Sequence[float]) -> list[Column]:
    """A column for each group of ratios with the same prompts, named by the share they hold."""
    groups: list[list[float]] = []
    for ratio in ratios:
        for group in groups:
            if all(
                np.array_equal(each.prompts[ratio], each.prompts[group[0]]) for each in originals
            ):
                group.append(ratio)
                break
        else:
            groups.append([ratio])
    columns: list[Column] = []
    for group in groups:
        shares = [each.shares[group[0]] for each in originals]
        mean = sum(shares) / len(shares)
        name = f"{mean:.3g}" if group[0] else UNCONDITIONAL
        if any(name == column.name for column in columns):  # prompts that differ by less
            name = f"{mean:.3g}, ratio {group[0]:g}"
        columns.append(Column(name, group[0], mean, (min(shares), max(shares)), group))
    return columns


def requests(
    representation: Representation, originals: Sequence[PromptedDocument], column: Column
) -> list[Request]:
    """The generation requests that complete all originals of one column.

    Args:
      representation: of the model.
      originals: with their prompts.
      column: of the prompts.
    """
    return [
        Request(
            np.concatenate([[each.start_token], each.prompts[column.ratio]]).astype(np.int32),
            -1 if each.start_token == representation.bos else each.document.label,
            each.document.key,
            column.ratio,
            each.shares[column.ratio],
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
    column: Column,
    folders: Sequence[epath.Path],
    path: epath.Path,
) -> None:
    """Writes a picture with a row for each of the first originals: itself, prompt, completions.

    Without prompts there are two parts: the original, and samples.

    Args:
      model: the model of the completions.
      originals: all originals, in the order of the requests.
      column: of the prompts.
      folders: of the generated completions, one per seed.
      path: of the PNG file.
    """
    recorded = [Tokens(folder, read_manifest(folder)) for folder in folders]
    tiles = []
    rows = min(len(originals), _GRID_ROWS)
    for number, each in enumerate(originals[:rows]):
        tiles.append(contact_sheet.pictures(model.representation, each.document.tokens))
        if column.ratio:
            prompt = each.prompts[column.ratio]
            tiles.append(contact_sheet.pictures_of_prefix(model.representation, prompt))
        completions = [tokens[number] for tokens in recorded]
        tiles += [contact_sheet.pictures(model.representation, each) for each in completions]
    contact_sheet.save(contact_sheet.sheet_of(tiles, len(tiles) // rows), path)
