"""Writes frames as MP4 (for browsers) or GIF (for other viewers)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from data_pipelines.media import libav

_MIN_SIDE = 128  # pixels; smaller clips are enlarged by an integer factor
_GAP = 4  # white pixels between clips
_CRF = 12  # x264's quality: its loss is small compared with that of the clips


def side_by_side(clips: Sequence[Sequence[Image.Image]]) -> list[Image.Image]:
    """Joins clips into one that shows them side by side; a shorter clip ends in white.

    Args:
      clips: images of one size, at least one in total.

    Returns:
      As many frames as the longest clip has, in mode RGB, of even width and height.

    Raises:
      ValueError: there is no frame.
    """
    sizes = [frame.size for clip in clips for frame in clip]
    if not sizes:
        raise ValueError("there is no frame to show")
    width, height = sizes[0]
    factor = max(1, math.ceil(_MIN_SIDE / max(width, height)))
    width, height = width * factor, height * factor
    whole = (len(clips) * (width + _GAP) - _GAP, height)
    result = []
    for time in range(max(map(len, clips))):
        page = Image.new("RGB", (whole[0] + whole[0] % 2, whole[1] + whole[1] % 2), "white")
        for column, clip in enumerate(clips):
            if time < len(clip):
                frame = clip[time].resize((width, height), Image.Resampling.NEAREST)
                page.paste(frame, (column * (width + _GAP), 0))
        result.append(page)
    return result


def mp4(frames: Sequence[Image.Image], fps: tuple[int, int]) -> bytes:
    """Encodes frames as an MP4 file (H.264, yuv420p).

    Args:
      frames: in mode RGB, of one even width and height.
      fps: (numerator, denominator) frames per second.
    """
    file = io.BytesIO()
    with libav.messages(), av.open(file, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=Fraction(*fps))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(_CRF)}
        for frame in frames:
            pixels = np.ascontiguousarray(np.asarray(frame))
            target.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        target.mux(stream.encode())
    return file.getvalue()


def gif(frames: Sequence[Image.Image], fps: tuple[int, int]) -> bytes:
    """Encodes frames as a GIF file that loops; durations are rounded to 10 ms."""
    buffer = io.BytesIO()
    first, *others = (frame.quantize(256) for frame in frames)
    milliseconds = 10 * max(2, round(100 * fps[1] / fps[0]))  # players slow down anything faster
    first.save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=milliseconds,
        loop=0,
    )
    return buffer.getvalue()
