"""What one looks at after a generation job: grids, originals beside completions, clips."""

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
_IN_GRID = {"image": 256, "clip": 16}  # documents, at most


def draw(
    representation: Representation,
    out: epath.Path,
    lines: Sequence[Mapping[str, Any]],
    requests: Sequence[Request],
    originals: Mapping[str, np.ndarray],
) -> None:
    """Writes the pictures of a finished job.

    grid.png shows the first documents; each clip gets an MP4 beside its stream. For completions
    side_by_side/NUMBER.png shows an original, what was given of it and what was made of that, and
    for clips NUMBER.mp4 and NUMBER.gif play the same.

    Args:
      representation: of the model.
      out: the job's folder.
      lines: of its manifest.
      requests: by number.
      originals: tokens of the media that were completed, by key; empty if there are none.
    """
    most = _IN_GRID[representation.medium]
    shown = [_document(representation, out, line) for line in lines[:most]]
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
        except ValueError:  # not one picture in it; the manifest says what is wrong
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
        given = requests[own[0]["number"]].prompt[1:]
        shown = [
            contact_sheet.pictures(representation, originals[key]),
            _beginning(representation, given),
            *(_document(representation, out, line) for line in own),
        ]
        contact_sheet.save(contact_sheet.sheet_of(shown, len(shown)), folder / f"{number:06d}.png")
        if isinstance(representation, AvcRepresentation):
            frames = movies.side_by_side(shown)
            (folder / f"{number:06d}.mp4").write_bytes(movies.mp4(frames, representation.rate))
            (folder / f"{number:06d}.gif").write_bytes(movies.gif(frames, representation.rate))


def _beginning(representation: Representation, given: np.ndarray) -> list[Image.Image]:
    """What was given, and nothing that a decoder makes of the end of the stream."""
    if isinstance(representation, JpegRepresentation):
        try:
            return [representation.salvage(given).image]
        except ValueError:  # not one MCU
            return []
    return contact_sheet.pictures(representation, given)[: representation.validate(given).units]


def _document(
    representation: Representation, out: epath.Path, line: Mapping[str, Any]
) -> list[Image.Image]:
    """The document of a line of the manifest, as far as it can be shown."""
    if not line["file"]:
        return []
    try:
        tokens = representation.from_bytes((out / line["file"]).read_bytes())
    except ValueError:  # a header that is not the representation's
        return []
    return contact_sheet.pictures(representation, tokens)
