"""Synthetic pictures and damaged JPEG streams for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = Path(__file__).parents[5] / "shared" / "data" / "photos"


def synthetic(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    """A picture with smooth parts, edges and noise.

    Made with integer arithmetic, so that it is equal on all processors.
    """
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    state = (x * 1103515245 + y * 12345 + seed * 2654435761) & 0x7FFFFFFF
    noise = (state * 1103515245 + 12345 >> 16) & 0xFF
    ramp = (x * (3 + seed % 5) + y * (5 + seed % 3)) % 256
    ring = ((x - width // 2) ** 2 + (y - height // 2) ** 2) * 4 // (64 + 32 * (seed % 7)) % 256
    part = (x * 4 // width + y * 3 // height) % 3
    channels = [np.choose((part + i) % 3, [ramp, ring, noise // (i + 1)]) for i in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)


def photos(count: int) -> list[Image.Image]:
    """At most `count` real photos; [] if the data is absent."""
    return [Image.open(path) for path in sorted(PHOTOS.glob("clothing/*/*.jpg"))[:count]]


def mutate(stream: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One damaged copy of a stream; some kinds of damage splice in bytes of `other`."""
    data = bytearray(stream)
    length = len(data)

    def position(end: int = length) -> int:
        return int(rng.integers(0, end))

    match int(rng.integers(0, 13)):
        case 0:  # one bit flipped
            data[position()] ^= 1 << int(rng.integers(8))
        case 1:  # several
            for _ in range(int(rng.integers(2, 6))):
                data[position()] ^= 1 << int(rng.integers(8))
        case 2:  # a byte replaced, often by one that occurs in markers
            data[position()] = int(rng.choice([0x00, 0xFF, 0xD0, 0xD9, int(rng.integers(256))]))
        case 3:  # truncated
            del data[position() :]
        case 4:  # a range deleted
            start = position()
            del data[start : start + int(rng.integers(1, 40))]
        case 5:  # a range repeated
            start = position()
            data[start:start] = data[start : start + int(rng.integers(1, 40))]
        case 6:  # two ranges swapped
            size = min(int(rng.integers(1, 30)), length)
            i, j = sorted((position(length - size + 1), position(length - size + 1)))
            if i + size <= j:
                data[i : i + size], data[j : j + size] = data[j : j + size], data[i : i + size]
        case 7:  # continued by another stream
            at = position()
            data[at:] = other[min(at, len(other)) :]
        case 8:  # continued by another part of the other stream
            data[position() :] = other[position(len(other)) :]
        case 9:  # bytes inserted
            at = position()
            data[at:at] = rng.bytes(int(rng.integers(1, 4)))
        case 10:  # markers deleted, doubled, renumbered or preceded by a byte
            markers = [i for i in range(length - 1) if data[i] == 0xFF and data[i + 1] >= 0xD0]
            at = int(rng.choice(markers)) if markers else position()
            match int(rng.integers(0, 4)):
                case 0:
                    del data[at : at + 2]
                case 1:
                    data[at:at] = data[at : at + 2]
                case 2:
                    data[at + 1 : at + 2] = bytes([0xD0 + int(rng.integers(0, 10))])
                case _:
                    data[at:at] = bytes([[0x00, 0xFF, 0x7F][int(rng.integers(3))]])
        case 11:  # padding changed: the byte before a marker
            markers = [i for i in range(1, length - 1) if data[i] == 0xFF and data[i + 1] >= 0xD0]
            at = int(rng.choice(markers)) - 1 if markers else position()
            data[at] = data[at] & ~1 if rng.integers(2) else data[at] ^ (1 << int(rng.integers(8)))
        case _:  # bytes after the end
            data += rng.bytes(int(rng.integers(1, 4)))
    return bytes(data)


def mutations(
    streams: Sequence[bytes], count: int, seed: int, whole: float = 0.05
) -> Iterator[bytes]:
    """Yields `count` streams, damaged once or twice; the fraction `whole` is unchanged."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        stream, other = (streams[int(i)] for i in rng.integers(0, len(streams), 2))
        if rng.random() >= whole:
            stream = mutate(stream, other, rng)
            if rng.random() < 0.1 and stream:
                stream = mutate(stream, other, rng)
        yield stream
