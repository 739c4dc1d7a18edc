"""What can still be shown of a damaged JPEG scan.

Between restart markers every MCU is read up to the first fault. Markers say which part of the
image follows, so what lies behind a damaged stretch is still put in its place. The rest is filled
with the mean colour of what was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.media import images
from data_pipelines.representations.jpeg.coefficients import read_segment, write_file
from data_pipelines.representations.jpeg.format import Geometry, JpegFormat

_RST0, _RST7, _EOI = 0xD0, 0xD7, 0xD9


class Salvage(NamedTuple):
    """An image restored as far as it goes.

    Attributes:
      image: the pixels.
      filled: the MCUs that were not read but filled in, bool [rows, columns].
      report: the same in one sentence.
    """

    image: Image.Image
    filled: np.ndarray
    report: str


def salvage(scan: bytes, settings: JpegFormat, geometry: Geometry) -> Salvage:
    """Restores an image from its scan, which may be damaged anywhere and end anywhere.

    Raises ValueError if not one MCU can be read.
    """
    interval = settings.restart_interval or geometry.mcus
    blocks = np.zeros((geometry.mcus, len(settings.block_components), 64), np.int64)
    filled = np.ones(geometry.mcus, bool)
    for before, after, data in _place(list(_pieces(scan)), -(-geometry.mcus // interval)):
        segment = read_segment(data, min(interval, geometry.mcus - before * interval), settings)
        # Where these differ, segments are missing: before this one if it is unhurt, else in it.
        first = interval * (after if segment.exact else before)
        blocks[first : first + segment.whole] = segment.blocks[: segment.whole]
        filled[first : first + segment.whole] = False
    if filled.all():
        raise ValueError(
            f"none of the {geometry.mcus} MCUs can be read from a scan of {len(scan)} bytes; "
            "there is nothing to show"
        )
    # Values no encoder makes (damage adds up in differences) are clamped, as viewers do.
    blocks[..., 0] = np.clip(blocks[..., 0], -1024, 1023)
    blocks[filled, :, 0] = _mean_colour(blocks[~filled, :, 0], settings)
    image = images.open_image(write_file(blocks, settings, geometry))
    return Salvage(image, filled.reshape(geometry.rows, geometry.columns), _report(filled))


class _Piece(NamedTuple):
    data: bytes
    marker: int  # that ends it; `_EOI` for the end of the scan


def _pieces(scan: bytes) -> Iterator[_Piece]:
    """The scan cut at everything that looks like a marker."""
    data = np.frombuffer(scan + b"\xff\xd9", np.uint8)
    ff = np.flatnonzero(data == 0xFF)
    start = 0
    for at in ff.tolist():
        marker = int(data[at + 1])
        if marker not in (0x00, 0xFF):  # a stuffed byte; a fill byte
            yield _Piece(scan[start:at], marker)
            start = at + 2


def _place(pieces: list[_Piece], count: int) -> Iterator[tuple[int, int, bytes]]:
    """The bytes of each piece whose place is known, with that place: the number of its segment.

    It comes twice, (by the marker before, by the marker after, bytes).

    As in libjpeg (jdmarker.c, jpeg_resync_to_restart), a marker ahead of the expected one means
    that segments are missing, one just behind it that this piece is one too many; but where the
    next marker goes on counting from the expected one, this one was merely misread.
    """
    number, known = 0, True
    for index, piece in enumerate(pieces):
        if number >= count:
            return
        restart = _RST0 <= piece.marker <= _RST7
        ahead = (piece.marker - _RST0 - number) % 8 if restart else 0
        if ahead and _next_restart(pieces, index) == (number + 1) % 8:
            ahead = 0
        if ahead < 6:
            if known:
                # The last segment may be shorter than others, so none is moved there.
                after = number + ahead if number + ahead < count - 1 else number
                yield number, after, piece.data
            number += 1 + ahead if restart else 0
        # After damage, or the end, what follows has no place until a restart marker.
        known = restart


def _next_restart(pieces: list[_Piece], index: int) -> int | None:
    """Number of the marker after this piece's, if it is a restart marker."""
    if index + 1 == len(pieces) or not _RST0 <= pieces[index + 1].marker <= _RST7:
        return None
    return pieces[index + 1].marker - _RST0


def _mean_colour(dc: np.ndarray, settings: JpegFormat) -> np.ndarray:
    """DC values of a block-wise even MCU, from those that were read, int [mcus, blocks]."""
    components = np.array(settings.block_components)
    means = [np.rint(dc[:, components == c].mean()) for c in range(components[-1] + 1)]
    return np.array(means, np.int64)[components]


def _report(filled: np.ndarray) -> str:
    if not filled.any():
        return f"all {len(filled)} MCUs were read"
    edges = np.flatnonzero(np.diff(np.concatenate([[0], filled, [0]])))
    runs = [
        f"{first}" if first == last - 1 else f"{first}-{last - 1}"
        for first, last in edges.reshape(-1, 2).tolist()
    ]
    more = "" if len(runs) <= 8 else f" and {len(runs) - 8} more stretches"
    return (
        f"{filled.sum()} of {len(filled)} MCUs were filled in with the mean colour of the others: "
        f"{', '.join(runs[:8])}{more}"
    )
