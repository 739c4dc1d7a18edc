"""From an H.264 stream, whole or damaged, to frames: with what the decoder had to say about it.

FFmpeg's decoder shows something for almost any bytes. Here it runs in one thread, so that what it
makes up for damage is the same every time, gets one access unit at a time, so that a frame that
does not come out is known by its place, and its complaints are counted.
"""

from __future__ import annotations

import dataclasses
import re

import av
import numpy as np

from data_pipelines.media import libav
from data_pipelines.representations.avc import bitstream as bitstream
from data_pipelines.representations.avc.bitstream import IDR, SLICE
from data_pipelines.representations.avc.encoder import AvcFormat


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Frames, and how far they are to be trusted.

    Attributes:
      frames: uint8 [T, height, width, 3], RGB.
      missing: places of frames that did not come out; they repeat the frame before, or
        else the first that came.
      corrupt: places of frames that came out with `is_corrupt` set: damage was painted over.
      errors: the decoder's lines of level error, in order.
    """

    frames: np.ndarray
    missing: tuple[int, ...]
    corrupt: tuple[int, ...]
    errors: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Every frame came out and the decoder complained of nothing."""
        return not (self.missing or self.corrupt or self.errors)

    @property
    def report(self) -> str:
        """The same in one sentence."""
        if self.clean:
            return f"all {len(self.frames)} frames decoded without a complaint"
        first = f", the first: {self.errors[0]}" if self.errors else ""
        return (
            f"of {len(self.frames)} frames {len(self.missing)} are missing and repeat the one "
            f"before, {len(self.corrupt)} are damaged; the decoder reports {len(self.errors)} "
            f"errors{first}"
        )


def access_units(stream: bytes) -> list[bytes]:
    """A stream cut before each slice that begins at macroblock 0, one piece a frame.

    What is neither slice nor parameter set is left out; parameter sets go with the slice after
    them. A leading piece without a first slice is a frame that lost it.
    """
    units: list[list[bytes]] = []
    sets: list[bytes] = []
    for nal in bitstream.nals(stream):
        data = stream[nal.start : nal.end]
        payload = stream[nal.payload : nal.payload + 2]
        kind = payload[0] & 31 if payload else -1
        if kind in (bitstream.SPS, bitstream.PPS):
            sets.append(data)
        elif kind in (SLICE, IDR):
            # first_mb_in_slice is the first code; 0 is a single bit 1.
            if not units or payload[1:] >= b"\x80":
                units.append([])
            units[-1] += [*sets, data]
            sets = []
    return [b"".join(unit) for unit in units]


def decode(stream: bytes, settings: AvcFormat, *, least: int, most: int) -> Decoded:
    """Decodes a stream that begins with its parameter sets, or has none.

    Args:
      stream: any bytes.
      settings: of the encoder; frames of another size count as missing.
      least, most: frames to give: those that are missing at the end are padded up to `least`,
        what follows `most` is not decoded.

    Raises ValueError if not one frame comes out.
    """
    units = access_units(stream)[:most]
    total = max(least, len(units))
    frames: dict[int, np.ndarray] = {}
    corrupt: set[int] = set()
    with libav.messages() as logs:
        decoder = _open(settings)
        for place, unit in enumerate([*units, None]):
            for frame in _decode(decoder, unit, place):
                at = frame.pts if frame.pts is not None else place
                right = (frame.width, frame.height) == (settings.width, settings.height)
                if at >= total or not right:
                    continue
                frames[at] = frame.to_ndarray(format="rgb24")
                if frame.is_corrupt:
                    corrupt.add(at)
    errors = tuple(_plain(text) for text in libav.errors(logs))
    if not frames:
        raise ValueError(
            f"not one frame comes out of a stream of {len(stream)} bytes"
            + (f" (the decoder: {errors[0]})" if errors else "")
        )
    return Decoded(
        _filled(frames, total),
        tuple(place for place in range(total) if place not in frames),
        tuple(sorted(corrupt)),
        errors,
    )


def _open(settings: AvcFormat) -> av.VideoCodecContext:
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    # A parameter set in the stream may state any size: no memory is taken for a larger one.
    area = (settings.width + 15) * (settings.height + 15)
    decoder.options = {"max_pixels": str(4 * area)}
    decoder.extradata = settings.constants.prefix
    return decoder


def _decode(decoder: av.VideoCodecContext, unit: bytes | None, place: int) -> list[av.VideoFrame]:
    packet = None
    if unit is not None:
        packet = av.Packet(unit)
        packet.pts = packet.dts = place
    try:
        return list(decoder.decode(packet))
    except av.FFmpegError:
        return []  # the decoder's own line about it is among the errors


def _filled(frames: dict[int, np.ndarray], total: int) -> np.ndarray:
    """All frames in order; a missing one is the one before it, at the beginning the one after."""
    shown = frames[min(frames)]
    rows = []
    for place in range(total):
        shown = frames.get(place, shown)
        rows.append(shown)
    return np.stack(rows)


def _plain(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x..", text)
