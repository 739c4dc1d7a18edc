"""Pictures of a finished generation job: a grid, completions next to their originals, MP4 clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.media import movies
from data_pipelines.representations import contact_sheet
from data_pipelines.representations.avc.mp4 import to_mp4
from data_pipelines.representations.avc.representation import AvcRepresentation
from data_pipelines.representations.base import Representation
from data_pipelines.representations.jpeg.representation import JpegRepresentation
from jpeglm_jax.generation.prompts import Request

GRID = "grid.png"
SIDE_BY_SIDE = "side_by_side"
_MAX_IN_GRID = {"image": 256, "clip": 16}  # documents


def write_pictures(
    representation: Representation,
    out: epath.Path,
    lines: Sequence[Mapping[str, Any]],
    requests: Sequence[Request],
    originals: Mapping[str, np.ndarray],
) -> None:
    """Writes the pictures of a finished job.

    grid.png shows the first documents; each clip also becomes an MP4. For completions
    side_by_side/NUMBER.png shows an original, its prompt and the completions, and for clips
    NUMBER.mp4 and NUMBER.gif play the same.

    Args:
      representation: of the model.
      out: the job's folder.
      lines: of its manifest.
      requests: in the order of their numbers.
      originals: tokens of the media that were completed, by key; empty if there are none.
    """
    in_grid = lines[: _MAX_IN_GRID[representation.medium]]
    shown = [_document(representation, out, line) for line in in_grid]
    contact_sheet.save(contact_sheet.sheet_of(shown), out / GRID)
    if isinstance(representation, AvcRepresentation):
        _write_clips(representation, out, lines)
    if originals:
        _write_side_by_side(representation, out, lines, requests, originals)


def _write_clips(
    representation: AvcRepresentation, out: epath.Path, lines: Sequence[Mapping[str, Any]]
) -> None:
    for line in lines:
        if not line["file"]:
            continue
        path = out / line["file"]
        try:
            playable = to_mp4(path.read_bytes(), representation.rate)
        except ValueError:  # no picture in it; the manifest has the reason
            continue
        path.with_suffix(".mp4").write_bytes(playable)


def _write_side_by_side(
    representation: Representation,
    out: epath.Path,
    lines: Sequence[Mapping[str, Any]],
    requests: Sequence[Request],
    originals: Mapping[str, np.ndarray],
) -> None:
    folder = out / SIDE_BY_SIDE
    folder.mkdir(exist_ok=True)
    by_source: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_source.setdefault(line["source"], []).append(line)
    for number, (key, own) in enumerate(by_source.items()):
        prefix = requests[own[0]["number"]].prompt[1:]
        shown = [
            contact_sheet.pictures(representation, originals[key]),
            _prefix(representation, prefix),
            *(_document(representation, out, line) for line in own),
        ]
        contact_sheet.save(contact_sheet.sheet_of(shown, len(shown)), folder / f"{number:06d}.png")
        if isinstance(representation, AvcRepresentation):
            frames = movies.side_by_side(shown)
            (folder / f"{number:06d}.mp4").write_bytes(movies.mp4(frames, representation.rate))
            (folder / f"{number:06d}.gif").write_bytes(movies.gif(frames, representation.rate))


def _prefix(representation: Representation, prefix: np.ndarray) -> list[Image.Image]:
    """The decoded prompt, without what a decoder fills in after its end."""
    if isinstance(representation, JpegRepresentation):
        try:
            return [representation.salvage(prefix).image]
        except ValueError:  # less than one MCU
            return []
    return contact_sheet.pictures(representation, prefix)[: representation.validate(prefix).units]


def _document(
    representation: Representation, out: epath.Path, line: Mapping[str, Any]
) -> list[Image.Image]:
    """The pictures of a document of the manifest; none if it cannot be decoded."""
    if not line["file"]:
        return []
    try:
        tokens = representation.from_bytes((out / line["file"]).read_bytes())
    except ValueError:  # its header is not the representation's
        return []
    return contact_sheet.pictures(representation, tokens)
