"""Pictures of a finished generation job: a grid, completions next to their originals, MP4 clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.media import movies
from data_pipelines.representations import contact_sheet
from data_pipelines.representations.base import Representation
from jpeglm_jax.generation.prompts import Request

GRID = "grid.png"
SIDE_BY_SIDE = "side_by_side"
_MAX_IMAGES, _MAX_CLIPS = 256, 16  # documents in the grid


def write_pictures(
    representation: Representation,
    out: epath.Path,
    lines: Sequence[Mapping[str, Any]],
    documents: Sequence[np.ndarray],
    requests: Sequence[Request],
    originals: Mapping[str, np.ndarray],
) -> None:
    """Writes the pictures of a finished job.

    grid.png shows the first documents; a document whose file ordinary players do not open also
    becomes one that they do. For completions side_by_side/NUMBER.png shows an original, its prompt
    and the completions, and for clips NUMBER.mp4 and NUMBER.gif play the same.

    Args:
      representation: of the model.
      out: the job's folder.
      lines: of its manifest.
      documents: tokens of the document of each line, integer [n].
      requests: in the order of their numbers.
      originals: tokens of the media that were completed, by key; empty if there are none.
    """
    for line, tokens in zip(lines, documents, strict=True):
        _write_playable(representation, out, line["number"], tokens)
    if originals:
        _write_side_by_side(representation, out, lines, documents, requests, originals)
    max_shown = _MAX_IMAGES if representation.frames == 1 else _MAX_CLIPS
    shown = [contact_sheet.pictures(representation, tokens) for tokens in documents[:max_shown]]
    contact_sheet.save(contact_sheet.sheet_of(shown), out / GRID)  # last: see `are_written`


def are_written(out: epath.Path) -> bool:
    """Whether all pictures of a job are there."""
    return (out / GRID).exists()


def _write_playable(
    representation: Representation, out: epath.Path, number: int, tokens: np.ndarray
) -> None:
    try:
        playable = representation.playable(tokens)
    except ValueError:  # nothing can be shown; the manifest has the reason
        return
    if playable is not None:
        suffix, data = playable
        (out / f"{number:06d}{suffix}").write_bytes(data)


def _write_side_by_side(
    representation: Representation,
    out: epath.Path,
    lines: Sequence[Mapping[str, Any]],
    documents: Sequence[np.ndarray],
    requests: Sequence[Request],
    originals: Mapping[str, np.ndarray],
) -> None:
    folder = out / SIDE_BY_SIDE
    folder.mkdir(exist_ok=True)
    by_source: dict[str, list[int]] = {}
    for index, line in enumerate(lines):
        by_source.setdefault(line["source"], []).append(index)
    for number, (key, own) in enumerate(by_source.items()):
        prefix = requests[lines[own[0]]["number"]].prompt[1:]
        shown = [
            contact_sheet.pictures(representation, originals[key]),
            contact_sheet.pictures_of_prefix(representation, prefix),
            *(contact_sheet.pictures(representation, documents[index]) for index in own),
        ]
        contact_sheet.save(contact_sheet.sheet_of(shown, len(shown)), folder / f"{number:06d}.png")
        if representation.frames > 1:
            frames = movies.side_by_side(shown)
            (folder / f"{number:06d}.mp4").write_bytes(movies.mp4(frames, representation.rate))
            (folder / f"{number:06d}.gif").write_bytes(movies.gif(frames, representation.rate))
