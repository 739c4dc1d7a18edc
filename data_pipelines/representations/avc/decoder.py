"""Decodes H.264 streams, whole or damaged, to frames, and reports the decoder's errors.

FFmpeg's decoder outputs frames for almost any bytes. Here it runs in one thread, so that error
concealment is deterministic, and gets one access unit at a time, so that missing frames are known
by their index. `AvcRepresentation` uses it for `decode`, `salvage` and `validate`.
"""

from __future__ import annotations

import dataclasses
import re

import av
import numpy as np

from data_pipelines.media import libav
from data_pipelines.representations.avc import bitstream
from data_pipelines.representations.avc.encoder import AvcFormat


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Decoded frames, and which of them are damaged.

    Attributes:
      frames: uint8 [T, height, width, 3], RGB.
      missing: indices of frames that were not decoded; each repeats the previous frame, or the
        first decoded frame if there is no previous one.
      corrupt: indices of frames decoded with `is_corrupt` set: errors were concealed.
      errors: the decoder's log messages of level error, in order.
    """

    frames: np.ndarray
    missing: tuple[int, ...]
    corrupt: tuple[int, ...]
    errors: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether every frame was decoded and the decoder logged no error."""
        return not (self.missing or self.corrupt or self.errors)

    @property
    def report(self) -> str:
        """The same in one sentence."""
        if self.clean:
            return f"all {len(self.frames)} frames were decoded without an error"
        first = f", the first: {self.errors[0]}" if self.errors else ""
        return (
            f"of {len(self.frames)} frames {len(self.missing)} are missing and repeat the previous "
            f"one, {len(self.corrupt)} are damaged; the decoder reports {len(self.errors)} "
            f"errors{first}"
        )


def access_units(stream: bytes) -> list[bytes]:
    """Splits a stream before each slice that begins at macroblock 0: one access unit per frame.

    Parameter sets belong to the slice after them; all other NAL units are removed. Slices before
    the first macroblock 0 form an access unit that lost its first slice.
    """
    units: list[list[bytes]] = []
    sets: list[bytes] = []
    for nal in bitstream.nals(stream):
        data = stream[nal.start : nal.end]
        payload = stream[nal.payload : nal.payload + 2]
        nal_type = payload[0] & 31 if payload else -1
        if nal_type in (bitstream.SPS, bitstream.PPS):
            sets.append(data)
        elif nal_type in (bitstream.SLICE, bitstream.IDR):
            # first_mb_in_slice is the first code; the code of 0 is a single bit 1.
            if not units or payload[1:] >= b"\x80":
                units.append([])
            units[-1] += [*sets, data]
            sets = []
    return [b"".join(unit) for unit in units]


def decode(stream: bytes, settings: AvcFormat, *, min_frames: int, max_frames: int) -> Decoded:
    """Decodes a stream with or without its parameter sets.

    Args:
      stream: any bytes.
      settings: of the encoder; frames of another size count as missing.
      min_frames: frames that a shorter stream is padded to; those added count as missing.
      max_frames: frames after which the stream is not decoded.

    Raises:
      ValueError: no frame can be decoded.
    """
    units = access_units(stream)[:max_frames]
    total = max(min_frames, len(units))
    frames: dict[int, np.ndarray] = {}
    corrupt: set[int] = set()
    with libav.messages() as logs:
        decoder = _open(settings)
        for index, unit in enumerate([*units, None]):
            for frame in _decode(decoder, unit, index):
                at = frame.pts if frame.pts is not None else index
                right = (frame.width, frame.height) == (settings.width, settings.height)
                if at >= total or not right:
                    continue
                frames[at] = frame.to_ndarray(format="rgb24")
                if frame.is_corrupt:
                    corrupt.add(at)
    errors = tuple(_without_addresses(text) for text in libav.errors(logs))
    if not frames:
        raise ValueError(
            f"no frame can be decoded from a stream of {len(stream)} bytes, expected at least one"
            + (f" (the decoder: {errors[0]})" if errors else "")
        )
    return Decoded(
        _filled(frames, total),
        tuple(index for index in range(total) if index not in frames),
        tuple(sorted(corrupt)),
        errors,
    )


def _open(settings: AvcFormat) -> av.VideoCodecContext:
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    # A damaged parameter set may have any size: no memory is allocated for a larger one.
    area = (settings.width + 15) * (settings.height + 15)
    decoder.options = {"max_pixels": str(4 * area)}
    decoder.extradata = settings.constants.prefix
    return decoder


def _decode(decoder: av.VideoCodecContext, unit: bytes | None, index: int) -> list[av.VideoFrame]:
    packet = None
    if unit is not None:
        packet = av.Packet(unit)
        packet.pts = packet.dts = index
    try:
        return list(decoder.decode(packet))
    except av.FFmpegError:
        return []  # the decoder has logged an error, which `libav.errors` returns


def _filled(frames: dict[int, np.ndarray], total: int) -> np.ndarray:
    """All frames in order; a missing one repeats the previous one, or the first one decoded."""
    shown = frames[min(frames)]
    filled = []
    for index in range(total):
        shown = frames.get(index, shown)
        filled.append(shown)
    return np.stack(filled)


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x..", text)
