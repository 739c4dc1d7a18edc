"""Restores as much of an image as possible from a damaged JPEG scan.

In each restart interval the MCUs before the first fault are read. Restart markers are numbered, so
intervals after the damage still get their position in the image. The other MCUs are filled with the
mean colour of those that were read. `JpegRepresentation.decode` and `salvage` call this module.
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
    """An image restored from a damaged scan.

    Attributes:
      image: the pixels.
      filled: which MCUs could not be read and were filled in, bool [rows, columns].
      report: the same in one sentence.
    """

    image: Image.Image
    filled: np.ndarray
    report: str


def salvage_scan(scan: bytes, settings: JpegFormat, geometry: Geometry) -> Salvage:
    """Restores an image from its scan, which may be damaged or truncated anywhere.

    Raises ValueError if no MCU can be read.
    """
    interval = settings.restart_interval or geometry.mcus
    blocks = np.zeros((geometry.mcus, len(settings.block_components), 64), np.int64)
    filled = np.ones(geometry.mcus, bool)
    intervals = -(-geometry.mcus // interval)
    for before, after, data in _numbered(list(_split(scan)), intervals):
        segment = read_segment(data, min(interval, geometry.mcus - before * interval), settings)
        # Where the two numbers differ, intervals are missing: before this segment if it is exact,
        # otherwise after its first fault.
        first = interval * (after if segment.exact else before)
        blocks[first : first + segment.whole] = segment.blocks[: segment.whole]
        filled[first : first + segment.whole] = False
    if filled.all():
        raise ValueError(
            f"none of the {geometry.mcus} MCUs can be read from a scan of {len(scan)} bytes; "
            "expected at least one, so there is nothing to show"
        )
    # Damaged DC differences can add up to values out of range; they are clamped, as viewers do.
    blocks[..., 0] = np.clip(blocks[..., 0], -1024, 1023)
    blocks[filled, :, 0] = _mean_colour(blocks[~filled, :, 0], settings)
    image = images.open_image(write_file(blocks, settings, geometry))
    return Salvage(image, filled.reshape(geometry.rows, geometry.columns), _report(filled))


class _Segment(NamedTuple):
    data: bytes  # entropy-coded, with byte stuffing
    marker: int  # second byte of the marker after it; `_EOI` for the end of the scan


def _split(scan: bytes) -> Iterator[_Segment]:
    """The scan cut at everything that looks like a marker."""
    data = np.frombuffer(scan + b"\xff\xd9", np.uint8)
    ff = np.flatnonzero(data == 0xFF)
    start = 0
    for at in ff.tolist():
        marker = int(data[at + 1])
        if marker not in (0x00, 0xFF):  # a stuffed byte; a fill byte
            yield _Segment(scan[start:at], marker)
            start = at + 2


def _numbered(segments: list[_Segment], intervals: int) -> Iterator[tuple[int, int, bytes]]:
    """The segments whose restart interval is known, with the number of that interval.

    As in libjpeg (jdmarker.c, jpeg_resync_to_restart), a marker ahead of the expected one means
    that intervals are missing, and a marker just behind it that this segment is superfluous. But if
    the next marker continues the count from the expected one, only this marker was damaged.

    Yields:
      (interval number by the marker before, interval number by the marker after, bytes).
    """
    number, known = 0, True
    for index, segment in enumerate(segments):
        if number >= intervals:
            return
        restart = _RST0 <= segment.marker <= _RST7
        ahead = (segment.marker - _RST0 - number) % 8 if restart else 0
        if ahead and _next_restart(segments, index) == (number + 1) % 8:
            ahead = 0
        if ahead < 6:
            if known:
                # The last interval may be shorter than the others: no segment is moved there.
                after = number + ahead if number + ahead < intervals - 1 else number
                yield number, after, segment.data
            number += 1 + ahead if restart else 0
        # After any other marker, the interval is unknown until the next restart marker.
        known = restart


def _next_restart(segments: list[_Segment], index: int) -> int | None:
    """Number of the marker after the next segment, if it is a restart marker."""
    if index + 1 == len(segments) or not _RST0 <= segments[index + 1].marker <= _RST7:
        return None
    return segments[index + 1].marker - _RST0


def _mean_colour(dc: np.ndarray, settings: JpegFormat) -> np.ndarray:
    """DC values [blocks] of an MCU of the mean colour of the MCUs read, dc: int [mcus, blocks]."""
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
    more = "" if len(runs) <= 8 else f" and {len(runs) - 8} more ranges"
    return (
        f"{filled.sum()} of {len(filled)} MCUs were filled in with the mean colour of the others: "
        f"{', '.join(runs[:8])}{more}"
    )
