"""Video files of any kind -> clips of plain frames, before any codec of ours sees them.

`read_clips` bounds, decodes, samples in time and fits; audio, subtitles and all metadata stay
behind. The frames of a clip are what a player shows at those moments, in limited-range BT.601
yuv420p of one size.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

# Demuxers of files that hold their own frames. Left out are playlists and scripts (HLS, DASH,
# concat, ...), which open other files and addresses.
# fmt: off
_FORMATS = (
    "mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v", "flv",
    "asf", "ogg", "gif", "yuv4mpegpipe", "nut", "ivf", "mxf", "rm", "dv", "apng", "obu",
)
# fmt: on
# Titles that are no UTF-8 are no reason to refuse a video. PyAV takes them from version 19 on, and
# before when told to.
_METADATA: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "backslashreplace"}
)
MAX_PIXELS = 2**26  # of a frame: 8192 x 8192
MAX_SECONDS = 12 * 3600
_MAX_RATE = 1000  # decoded frames a second of what the file says it lasts
_MAX_GAP = 60  # seconds without a frame; a longer one is a damaged time stamp
_SCALE = "bicubic+accurate_rnd+full_chroma_int+bitexact"  # equal results on every processor


class VideoError(ValueError):
    """A video that cannot be used, or not to its end; the message says why in one sentence."""


def read_clips(
    data: bytes,
    *,
    size: tuple[int, int],
    fps: tuple[int, int],
    frames: int,
    least: int,
    max_pixels: int = MAX_PIXELS,
    max_seconds: float = MAX_SECONDS,
) -> Iterator[list[av.VideoFrame]]:
    """The clips of a video file, cut one after the other from its beginning.

    At every 1/fps seconds, counted from the first frame, the frame is taken that FFmpeg's filter
    `fps` takes: the last whose time rounds to that moment or an earlier one. So a variable rate
    becomes a constant one, and of a lower rate frames are repeated.

    Args:
      data: the whole file.
      size: (width, height) of the frames: see `Fitter`.
      fps: (numerator, denominator) frames a second.
      frames: of a clip.
      least: frames of the shortest clip: what is left at the end of a video is a clip of its own
        if it has as many, and left out if not.
      max_pixels: width x height allowed, judged before memory for a frame is taken.
      max_seconds: length allowed, judged from the header and again while decoding.

    Raises:
      VideoError: no video, nothing but audio, encrypted, too large, too long or too short. After
        the clips before it: damaged, or cut short.
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
    if len(clip) >= least:
        yield clip
    elif not clips:
        rate = Fraction(*fps)
        raise VideoError(
            f"the video gives {len(clip)} frames at {_number(rate)} a second "
            f"({_number(len(clip) / rate)} s), expected at least {least}"
        )


class Fitter:
    """Brings frames to one size: turned upright, scaled to fit, padded with black.

    Each frame keeps the shape that a player gives it: rotation, mirroring and the shape of its
    pixels are applied, and the metadata that states them is removed. Of an interlaced frame the
    first field is taken. Frames of one video may differ in size or pixel format.
    """

    def __init__(self, size: tuple[int, int]):
        self._size = size
        self._key: tuple[Any, ...] = ()
        self._graph: Any = None

    def fit(self, frame: av.VideoFrame, pixel_aspect: Fraction | None = None) -> av.VideoFrame:
        """One frame -> yuv420p of the size, limited range, BT.601; itself if it is that already.

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
        if matrix is None:  # not said: high definition is BT.709, as players take it
            matrix = "bt709" if min(frame.width, frame.height) > 576 else "bt601"
        full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
        full |= frame.format.name.startswith(("rgb", "bgr", "gbr", "pal", "gray", "ya"))
        return (
            f"{size[0]}:{size[1]}:flags={_SCALE}:in_color_matrix={matrix}:out_color_matrix=bt601:"
            f"in_range={'full' if full else 'limited'}:out_range=limited"
        )


_FULL = 2  # AVCOL_RANGE_JPEG
_OURS = (2, 1)  # unspecified matrix, which is BT.601 at these sizes; limited range
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
    """The largest (width, height) of a shape inside a size, to the nearest pixel."""
    factor = min(size[0] / shape[0], size[1] / shape[1])
    width, height = (max(1, math.floor(side * factor + Fraction(1, 2))) for side in shape)
    return min(width, size[0]), min(height, size[1])


class _Reader:
    """The frames of a file's first video stream with their times; see `read_clips`."""

    def __init__(self, data: bytes, max_pixels: int, max_seconds: float):
        self._data, self._max_pixels, self._max_seconds = data, max_pixels, max_seconds

    def frames(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame, Fraction | None]]:
        """(time, duration, frame, pixel aspect), seconds from the first frame, never decreasing."""
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
                f"found {len(self._data)} bytes that are no video known here, or without their "
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
            at = frame.pts * frame.time_base if frame.pts is not None else None
            if first is None:
                first = at if at is not None else Fraction(0)
            time = max(time, at - first) if at is not None else end
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
        # Half a second, or a tenth: edit lists and the last frame's duration are told loosely.
        if stated is not None and end < stated - max(Fraction(1, 2), stated / 10):
            raise VideoError(
                f"cut short: {_number(end)} s of {_number(stated)} s that the file states"
            )

    def _stream(self, container: Any) -> Any:
        """The first video stream that is not a cover picture."""
        cover = av.stream.Disposition.attached_pic
        for stream in container.streams.video:
            if not stream.disposition & cover:
                return stream
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"the file holds no video (found: {', '.join(kinds) or 'no stream'})")

    def _check_header(self, container: Any, stream: Any) -> Fraction | None:
        """What can be known before decoding; the seconds that the stream states, if it does."""
        context = stream.codec_context
        if context is None:
            raise VideoError("the video's codec is not known here")
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
    """(frame, pixel aspect) at every 1/fps seconds, as FFmpeg's filter `fps` rounds (to near)."""
    rate = Fraction(*fps)
    held: tuple[av.VideoFrame, Fraction | None] | None = None
    place, end = 0, Fraction(0)
    for time, duration, frame, aspect in reader.frames():
        moment = math.floor(time * rate + Fraction(1, 2))
        while held is not None and place < moment:
            yield held
            place += 1
        held = (frame, aspect)
        end = time + duration
    last = math.floor(end * rate + Fraction(1, 2))
    while held is not None and place < last:
        yield held
        place += 1


def _number(value: Any) -> str:
    return f"{float(value):.6g}"
