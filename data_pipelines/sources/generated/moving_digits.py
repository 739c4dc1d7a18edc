"""`moving_digits[:CLIPS]`: clips of moving handwritten digits, rendered on reading."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from data_pipelines.media import Kind
from data_pipelines.sources.base import Item, Locator, Source, SourceError
from data_pipelines.sources.generated.digits import digits

FPS = 4
FRAMES = 8
SIZE = 48  # side of a frame in pixels
DIGIT = 16  # side of the digit in pixels
_CLIPS = 20_000
_SPEEDS = (2.0, 5.0)  # pixels per frame


class MovingDigitsSource(Source):
    """Clips of 2 seconds: one white digit on black that moves straight and bounces at the edges.

    Clip n shows a digit of `digits`, at first in the middle: the digit of the first frame, which
    has no frame before it, is then one macroblock, always the same. Its digit, direction and speed
    (2 to 5 pixels per frame) are derived from a hash of n; its label is the digit's class. Frames
    have 48x48 pixels; a clip has 8 frames at 4 per second, uncompressed (YUV4MPEG2).
    """

    scheme = "moving_digits"

    def __init__(self, argument: str = "", kind: Kind = "image") -> None:
        if kind != "video":
            raise SourceError(f"'moving_digits' holds videos, expected {kind}s: see 'digits'")
        if argument and not (argument.isascii() and argument.isdigit() and int(argument)):
            raise SourceError(
                f"found 'moving_digits:{argument}', expected a number of clips, as in "
                f"'moving_digits:{_CLIPS}'"
            )
        super().__init__(argument, kind)
        self._clips = int(argument or _CLIPS)

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(str(digit) for digit in range(10))

    def _list(self) -> Iterator[Item]:
        _, labels = digits()
        for clip in range(self._clips):
            yield Item(f"moving_digits/{clip:06d}", clip, int(labels[_sample(clip)[0]]))

    def read(self, locator: Locator) -> bytes:
        """A YUV4MPEG2 file."""
        if not isinstance(locator, int) or not 0 <= locator < self._clips:
            raise SourceError(
                f"{self.spec} has no clip {locator!r}, expected 0 to {self._clips - 1}"
            )
        header = f"YUV4MPEG2 W{SIZE} H{SIZE} F{FPS}:1 Ip A1:1 C420jpeg XCOLORRANGE=FULL\n"
        chroma = bytes([128]) * (SIZE * SIZE // 2)
        frames = (b"FRAME\n" + frame.tobytes() + chroma for frame in render(locator))
        return header.encode() + b"".join(frames)


def render(clip: int) -> np.ndarray:
    """Renders the luma of a clip, uint8 [8, 48, 48]."""
    digit, angle, speed = _sample(clip)
    glyph = Image.fromarray(digits()[0][digit]).resize((DIGIT, DIGIT), Image.Resampling.BICUBIC)
    pace = _SPEEDS[0] + speed * (_SPEEDS[1] - _SPEEDS[0])
    velocity = pace * np.array([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)])
    start = (SIZE - DIGIT) / 2
    frames = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    for time in range(FRAMES):
        x, y = np.rint(_bounced(start + time * velocity)).astype(int)
        frames[time, y : y + DIGIT, x : x + DIGIT] = np.asarray(glyph)
    return frames


def _bounced(position: np.ndarray) -> np.ndarray:
    """Folds an unbounded position back between the edges, 0 and SIZE - DIGIT."""
    limit = SIZE - DIGIT
    return limit - np.abs(position % (2 * limit) - limit)


def _sample(clip: int) -> tuple[int, float, float]:
    """A digit's index and two numbers in [0, 1), from a hash: equal on every platform."""
    name = f"moving_digits/{clip}".encode()
    number, *words = struct.unpack("<3Q", hashlib.blake2b(name, digest_size=24).digest())
    angle, speed = (word / 2**64 for word in words)
    return number % len(digits()[1]), angle, speed
