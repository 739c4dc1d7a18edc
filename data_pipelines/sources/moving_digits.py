"""`moving_digits[:CLIPS]`: handwritten digits that move and bounce, rendered as they are read."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from data_pipelines.sources.base import Item, Kind, Locator, Source, SourceError
from data_pipelines.sources.digits import digits

FPS = 4
FRAMES = 8
SIZE = 32  # pixels, square
DIGIT = 16  # side of the digit in it
_CLIPS = 20_000
_SPEEDS = (2.0, 5.0)  # pixels a frame


class MovingDigitsSource(Source):
    """Clips of 2 seconds: one digit, white on black, that goes straight on and bounces at edges.

    Clip n shows a digit of `digits`, from a place, in a direction and at a speed (2 to 5 pixels a
    frame) that are hashes of n; its label is the digit's class. 32x32 pixels, 8 frames at 4 a
    second, uncompressed (YUV4MPEG2).
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
            yield Item(f"moving_digits/{clip:06d}", clip, int(labels[_draw(clip)[0]]))

    def read(self, locator: Locator) -> bytes:
        """A YUV4MPEG2 file."""
        if not isinstance(locator, int) or not 0 <= locator < self._clips:
            raise SourceError(
                f"{self.spec} has no clip {locator!r}: they are 0 to {self._clips - 1}"
            )
        header = f"YUV4MPEG2 W{SIZE} H{SIZE} F{FPS}:1 Ip A1:1 C420jpeg XCOLORRANGE=FULL\n"
        chroma = bytes([128]) * (SIZE * SIZE // 2)
        frames = (b"FRAME\n" + frame.tobytes() + chroma for frame in render(locator))
        return header.encode() + b"".join(frames)


def render(clip: int) -> np.ndarray:
    """Luma of a clip, uint8 [8, 32, 32]."""
    digit, left, top, angle, speed = _draw(clip)
    glyph = Image.fromarray(digits()[0][digit]).resize((DIGIT, DIGIT), Image.Resampling.BICUBIC)
    pace = _SPEEDS[0] + speed * (_SPEEDS[1] - _SPEEDS[0])
    velocity = pace * np.array([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)])
    start = np.array([left, top]) * (SIZE - DIGIT)
    frames = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    for place in range(FRAMES):
        x, y = np.rint(_bounced(start + place * velocity)).astype(int)
        frames[place, y : y + DIGIT, x : x + DIGIT] = np.asarray(glyph)
    return frames


def _bounced(position: np.ndarray) -> np.ndarray:
    """A place on an endless line, folded back between 0 and the far edge."""
    room = SIZE - DIGIT
    return room - np.abs(position % (2 * room) - room)


def _draw(clip: int) -> tuple[int, float, float, float, float]:
    """A digit's number and four numbers in [0, 1), by hash: equal on every platform."""
    name = f"moving_digits/{clip}".encode()
    number, *words = struct.unpack("<5Q", hashlib.blake2b(name, digest_size=40).digest())
    left, top, angle, speed = (word / 2**64 for word in words)
    return number % len(digits()[1]), left, top, angle, speed
