"""An H.264 stream in an MP4 file, which browsers play: moved there, not encoded again."""

from __future__ import annotations

import io
from fractions import Fraction

import av

from data_pipelines.media import libav
from data_pipelines.representations.avc import decoder


def to_mp4(stream: bytes, fps: tuple[int, int]) -> bytes:
    """An Annex B stream -> an MP4 file of the same slices.

    Args:
      stream: from its parameter sets on, as `AvcRepresentation.to_bytes` gives it.
      fps: (numerator, denominator) frames a second.

    Raises ValueError if it holds no picture.
    """
    file = io.BytesIO()
    units = decoder.access_units(stream)
    if not units:
        raise ValueError(f"found no picture in a stream of {len(stream)} bytes; expected one")
    with libav.messages():
        try:
            with (
                av.open(io.BytesIO(stream), format="h264") as source,
                av.open(file, "w", format="mp4") as target,
            ):
                out = target.add_stream_from_template(source.streams.video[0])
                time_base = Fraction(fps[1], fps[0])
                out.time_base = time_base
                for place, unit in enumerate(units):
                    packet = av.Packet(unit)
                    packet.stream, packet.time_base = out, time_base
                    packet.pts = packet.dts = place
                    packet.duration = 1
                    packet.is_keyframe = _is_key(unit)
                    target.mux(packet)
        except av.FFmpegError as error:
            raise ValueError(f"the stream does not go into an MP4 file: {error}") from error
    return file.getvalue()


def _is_key(unit: bytes) -> bool:
    return b"\x00\x00\x01\x65" in unit
