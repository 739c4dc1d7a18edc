"""Decodes video files into clips of frames of one size and frame rate.

`read_clips` limits the size, decodes, resamples in time and scales to fit. Audio, subtitles and
metadata are dropped. Frames are limited-range BT.601 yuv420p. A representation encodes the result.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from PIL import Image

# Demuxers of self-contained files. Not listed: playlists and scripts (HLS, DASH, concat, ...),
# which open other files and URLs.
# fmt: off
_FORMATS = (
    "mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v", "flv",
    "asf", "ogg", "gif", "yuv4mpegpipe", "nut", "ivf", "mxf", "rm", "dv", "apng", "obu",
)
# fmt: on
# Accept metadata that is not UTF-8: PyAV does so by default from version 19 on.
_METADATA: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "backslashreplace"}
)
MAX_PIXELS = 2**26  # per frame: 8192 x 8192
MAX_SECONDS = 12 * 3600
_MAX_RATE = 1000  # decoded frames per second of allowed duration
_MAX_GAP = 60  # seconds without a frame; a longer gap means a damaged time stamp
_SCALE = "bicubic+accurate_rnd+full_chroma_int+bitexact"  # equal results on every processor


class VideoError(ValueError):
    """A video cannot be used, or not to its end; the message is one sentence with the reason."""


def read_clips(
    data: bytes,
    *,
    size: tuple[int, int],
    fps: tuple[int, int],
    frames: int,
    min_frames: int,
    max_pixels: int = MAX_PIXELS,
    max_seconds: float = MAX_SECONDS,
) -> Iterator[list[av.VideoFrame]]:
    """Yields the consecutive clips of a video file, from its beginning.

    Frames are sampled every 1/fps seconds from the first frame on, as FFmpeg's filter `fps` does:
    the last frame whose time rounds to that moment or an earlier one. A variable frame rate becomes
    constant; frames of a lower rate are repeated.

    Args:
      data: the whole file.
      size: (width, height) of the frames: see `Fitter`.
      fps: (numerator, denominator) frames per second.
      frames: number of frames of a clip.
      min_frames: minimum number of frames of the last clip; a shorter one is dropped.
      max_pixels: maximum width x height, checked before memory for a frame is allocated.
      max_seconds: maximum duration, checked in the header and again while decoding.

    Raises:
      VideoError: not a video, audio only, encrypted, too large, too long or too short. If the file
        is damaged or truncated, the clips before the damage are yielded first.
    """
    sampled = _sample(_Reader(data, max_pixels, max_seconds), fps)
    fitter = Fitter(size)
    clip: list[av.VideoFrame] = []
    clips = 0
    for frame in sampled:
        clip.append(fitter.fit(*frame))
        if len(clip) == frames:
            yield clip
            clip, clips = [], clips + 1
    if len(clip) >= min_frames:
        yield clip
    elif not clips:
        rate = Fraction(*fps)
        raise VideoError(
            f"the video gives {len(clip)} frames at {_number(rate)} per second "
            f"({_number(len(clip) / rate)} s), expected at least {min_frames}"
        )


def first_frame(data: bytes) -> Image.Image:
    """The first frame of a video file, in mode RGB. Raises VideoError for one that has none."""
    for _, _, frame, _ in _Reader(data, MAX_PIXELS, MAX_SECONDS).frames():
        return frame.to_image()
    raise VideoError("the video has no frame")


class Fitter:
    """Brings frames to one size: rotated upright, scaled to fit, padded with black.

    Rotation, mirroring and the pixel aspect ratio are applied, as in a player, and the metadata
    that states them is removed. An interlaced frame gives its first field. The frames of one video
    may differ in size or pixel format.
    """

    def __init__(self, size: tuple[int, int]):
        self._size = size
        self._key: tuple[Any, ...] = ()
        self._graph: Any = None

    def fit(self, frame: av.VideoFrame, pixel_aspect: Fraction | None = None) -> av.VideoFrame:
        """Converts a frame to limited-range BT.601 yuv420p of the size, unless it is that already.

        Args:
          frame: of any pixel format.
          pixel_aspect: width of a pixel over its height; None for 1.
        """
        about = (frame.width, frame.height, frame.format.name, _orientation(frame))
        key = (*about, frame.interlaced_frame, frame.colorspace, frame.color_range, pixel_aspect)
        if about == (*self._size, "yuv420p", ()) and key[4:] == (False, *_OURS, pixel_aspect):
            return frame
        if key != self._key:
            self._graph, self._key = self._build(frame, pixel_aspect or Fraction(1)), key
        self._graph.push(frame)
        fitted = self._graph.pull()
        fitted.color_range, fitted.colorspace = _OURS[1], _OURS[0]
        return fitted

    def _build(self, frame: av.VideoFrame, pixel_aspect: Fraction) -> Any:
        graph = av.filter.Graph()
        graph.threads = 1
        nodes = [
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=Fraction(1, 1000),
            )
        ]
        width, height = frame.width * pixel_aspect, Fraction(frame.height)
        if frame.interlaced_frame:
            nodes.append(graph.add("field", "top"))
        for name, value in _orientation(frame):
            if name == "transpose":
                width, height = height, width
            nodes.append(graph.add(name, value))
        inner = fitted_size((width, height), self._size)
        nodes += [
            graph.add("scale", self._scale(frame, inner)),
            graph.add("format", "yuv420p"),
            graph.add("pad", f"{self._size[0]}:{self._size[1]}:(ow-iw)/2:(oh-ih)/2"),
            graph.add("setsar", "1"),
            # The display matrix has been applied: a fitted frame does not carry it any further.
            graph.add("sidedata", "mode=delete"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph

    def _scale(self, frame: av.VideoFrame, size: tuple[int, int]) -> str:
        matrix = _MATRICES.get(frame.colorspace)
        if matrix is None:  # unspecified: like players, take BT.709 for high definition
            matrix = "bt709" if min(frame.width, frame.height) > 576 else "bt601"
        full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
        full |= frame.format.name.startswith(("rgb", "bgr", "gbr", "pal", "gray", "ya"))
        return (
            f"{size[0]}:{size[1]}:flags={_SCALE}:in_color_matrix={matrix}:out_color_matrix=bt601:"
            f"in_range={'full' if full else 'limited'}:out_range=limited"
        )


_FULL = 2  # AVCOL_RANGE_JPEG
_OURS = (2, 1)  # unspecified matrix, read as BT.601 at these sizes; limited range
_MATRICES = {
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    9: "bt2020",
    10: "bt2020",
}


def _orientation(frame: av.VideoFrame) -> tuple[tuple[str, str | None], ...]:
    """The filters (name, options) that apply a frame's display matrix, as FFmpeg's command does.

    The nearest quarter turn clockwise, and a mirroring where the matrix has one.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return ()
    matrix = struct.unpack("=9i", bytes(data)[:36])
    turns = round(-frame.rotation / 90) % 4
    if turns == 1:
        return (("transpose", "cclock_flip" if matrix[3] > 0 else "clock"),)
    if turns == 3:
        return (("transpose", "clock_flip" if matrix[3] < 0 else "cclock"),)
    flips: list[tuple[str, str | None]] = []
    if turns == 2 and matrix[0] < 0:
        flips.append(("hflip", None))
    if matrix[4] < 0:
        flips.append(("vflip", None))
    return tuple(flips)


def fitted_size(shape: tuple[Fraction, Fraction], size: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) with a given aspect ratio that fits into a size, rounded."""
    factor = min(size[0] / shape[0], size[1] / shape[1])
    width, height = (max(1, math.floor(side * factor + Fraction(1, 2))) for side in shape)
    return min(width, size[0]), min(height, size[1])


class _Reader:
    """Decodes a file's first video stream into frames with their times; see `read_clips`."""

    def __init__(self, data: bytes, max_pixels: int, max_seconds: float):
        self._data, self._max_pixels, self._max_seconds = data, max_pixels, max_seconds

    def frames(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame, Fraction | None]]:
        """Yields (time, duration, frame, pixel aspect); times are seconds from the first frame."""
        if not self._data:
            raise VideoError("the file is empty; expected a video")
        container = self._open()
        try:
            yield from self._decode(container)
        finally:
            container.close()

    def _open(self) -> Any:
        options = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": ""}
        try:
            return av.open(io.BytesIO(self._data), options=options, **_METADATA)
        except av.FFmpegError as error:
            raise VideoError(
                f"found {len(self._data)} bytes in no supported video format, or without their "
                f"index ({error.strerror})"
            ) from error

    def _decode(
        self, container: Any
    ) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame, Fraction | None]]:
        stream = self._stream(container)
        stated = self._check_header(container, stream)
        context = stream.codec_context
        context.thread_count = 1
        context.options = {"max_pixels": str(self._max_pixels)}
        step = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
        first: Fraction | None = None
        time = end = Fraction(0)
        count = 0
        for frame in self._frames(container, stream):
            if frame.is_corrupt:
                raise VideoError(f"frame {count} is damaged (at {_number(end)} s)")
            if frame.width * frame.height > self._max_pixels:
                raise self._too_large(frame.width, frame.height)
            stamp = frame.pts * frame.time_base if frame.pts is not None else None
            if first is None:
                first = stamp if stamp is not None else Fraction(0)
            time = max(time, stamp - first) if stamp is not None else end
            if time > self._max_seconds or count > self._max_seconds * _MAX_RATE:
                raise self._too_long(time)
            if time - end > _MAX_GAP:
                raise VideoError(
                    f"no frame for {_number(time - end)} s after {_number(end)} s, expected one in "
                    f"{_MAX_GAP} s: the time stamps are damaged"
                )
            duration = frame.duration * frame.time_base if frame.duration else step
            yield time, duration, frame, stream.sample_aspect_ratio
            end = time + duration
            count += 1
        if not count:
            raise VideoError("the video stream has no frame that decodes")
        # Tolerance of half a second or a tenth: stated durations and edit lists are imprecise.
        if stated is not None and end < stated - max(Fraction(1, 2), stated / 10):
            raise VideoError(
                f"truncated: {_number(end)} s of {_number(stated)} s that the header states"
            )

    def _stream(self, container: Any) -> Any:
        """The first video stream that is not a cover image."""
        cover = av.stream.Disposition.attached_pic
        for stream in container.streams.video:
            if not stream.disposition & cover:
                return stream
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"the file holds no video (found: {', '.join(kinds) or 'no stream'})")

    def _check_header(self, container: Any, stream: Any) -> Fraction | None:
        """Checks the header; returns the stream's stated duration in seconds, if it has one."""
        context = stream.codec_context
        if context is None:
            raise VideoError("the video's codec is not supported")
        if context.width * context.height > self._max_pixels:
            raise self._too_large(context.width, context.height)
        stated = stream.duration * stream.time_base if stream.duration else None
        if stated is None and container.duration and len(container.streams) == 1:
            stated = Fraction(container.duration, av.time_base)
        longest = max(stated or Fraction(0), Fraction(container.duration or 0, av.time_base))
        if longest > self._max_seconds:
            raise self._too_long(longest)
        return stated

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        try:
            yield from container.decode(stream)
        except av.FFmpegError as error:
            if b"encv" in self._data and b"sinf" in self._data:
                raise VideoError("the video is encrypted; decrypt it first") from error
            raise VideoError(f"the video does not decode: {error.strerror}") from error

    def _too_large(self, width: int, height: int) -> VideoError:
        return VideoError(
            f"the video has {width} x {height} pixels, expected at most {self._max_pixels:,} in "
            "all; scale it down"
        )

    def _too_long(self, seconds: Fraction | float) -> VideoError:
        return VideoError(
            f"the video lasts {_number(seconds)} s, expected at most {_number(self._max_seconds)} "
            "s; cut it"
        )


def _sample(
    reader: _Reader, fps: tuple[int, int]
) -> Iterator[tuple[av.VideoFrame, Fraction | None]]:
    """Yields (frame, pixel aspect) every 1/fps seconds, rounding as FFmpeg's filter `fps` does."""
    rate = Fraction(*fps)
    current: tuple[av.VideoFrame, Fraction | None] | None = None
    index, end = 0, Fraction(0)
    for time, duration, frame, aspect in reader.frames():
        moment = math.floor(time * rate + Fraction(1, 2))
        while current is not None and index < moment:
            yield current
            index += 1
        current = (frame, aspect)
        end = time + duration
    last = math.floor(end * rate + Fraction(1, 2))
    while current is not None and index < last:
        yield current
        index += 1


def _number(value: Any) -> str:
    return f"{float(value):.6g}"
