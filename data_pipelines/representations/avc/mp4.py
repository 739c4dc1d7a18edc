"""Moves H.264 streams into MP4 files, which browsers play, without encoding them again.

`jpeglm_jax.generation.pictures` uses it for generated clips.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av

from data_pipelines.media import libav
from data_pipelines.representations.avc.decoder import access_units


def to_mp4(stream: bytes, fps: tuple[int, int]) -> bytes:
    """An Annex B stream -> an MP4 file of the same slices.

    Args:
      stream: begins with its parameter sets, as `AvcRepresentation.to_bytes` returns it.
      fps: frames per second, (numerator, denominator).

    Raises:
      ValueError: the stream holds no picture, or FFmpeg cannot put it into an MP4 file.
    """
    file = io.BytesIO()
    units = access_units(stream)
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
                for index, unit in enumerate(units):
                    packet = av.Packet(unit)
                    packet.stream, packet.time_base = out, time_base
                    packet.pts = packet.dts = index
                    packet.duration = 1
                    packet.is_keyframe = _is_key(unit)
                    target.mux(packet)
        except av.FFmpegError as error:
            raise ValueError(f"FFmpeg cannot put the stream into an MP4 file: {error}") from error
    return file.getvalue()


def _is_key(unit: bytes) -> bool:
    return b"\x00\x00\x01\x65" in unit
