"""The H.264 encoder: libx264 through PyAV, with settings that are verified.

x264 ignores an option that it does not know and only logs a warning. So for each set of settings a
few frames are encoded first, and the options that x264 lists in the stream (an SEI message) are
compared with those requested; a difference is an error. The parameter sets of that stream are the
constants that all streams of these settings begin with.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.frame import PictureType

from data_pipelines.media import libav
from data_pipelines.representations.avc import bitstream

STRIPS = ("none", "headers")
MAX_SIDE = 4096
_CODEC = "libx264"
_PROBE_FRAMES = 4
_FIRST_SLICE = re.compile(rb"\x00?\x00\x00\x01[\x01\x05\x21\x25\x41\x45\x61\x65]", re.DOTALL)
# All frames are reference frames: nal_ref_idc by NAL type, and max references of a P slice.
REF_IDC = {bitstream.IDR: 3, bitstream.SLICE: 2}
MAX_REFERENCES = 3

# The paper's flags (arXiv 2408.08459, appendix) with x264's names. cpu-independent is added, which
# makes the bytes equal on processors with other vector units.
_FIXED = {
    "bframes": "0",
    "trellis": "0",
    "me": "dia",
    "threads": "1",
    "subme": "0",
    "psy": "0",
    "mixed-refs": "0",
    "fast-pskip": "0",
    "partitions": "none",
    "ref": str(MAX_REFERENCES),
    "cpu-independent": "1",
}
# (name, value) in x264's list of options, where they differ from those of the request.
_LISTED_AS = {"mixed-refs": ("mixed_ref", "0"), "partitions": ("analyse", "0x1:0")}


class EncoderError(RuntimeError):
    """The encoder is missing, fails, or does not use the requested options."""


class Constants(NamedTuple):
    """The constants of all streams of one set of settings.

    Attributes:
      sps, pps: the parameter sets.
      sps_nal, pps_nal: the parameter sets as NAL units.
      prefix: both NAL units with start codes, as they precede every IDR picture.
      qps: QP of a slice, by slice type.
      deblocking: the deblocking fields of slice headers, by slice type.
      core: x264's build, as it reports it.
    """

    sps: bitstream.Sps
    pps: bitstream.Pps
    sps_nal: bytes
    pps_nal: bytes
    prefix: bytes
    qps: dict[int, int]
    deblocking: dict[int, tuple[int, ...]]
    core: str


@dataclasses.dataclass(frozen=True)
class AvcFormat:
    """The settings of the encoder that determine the bytes of a stream.

    Attributes:
      width, height: pixels, even.
      fps: frames per second, (numerator, denominator).
      qp: of P frames, 1-51; I frames have a quantiser smaller by x264's ratio of 1.4.
      slice_mbs: macroblocks of a slice; 0 makes each frame one slice.
    """

    width: int
    height: int
    fps: tuple[int, int]
    qp: int
    slice_mbs: int

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            side = getattr(self, name)
            _check_integer(name, side, 16, MAX_SIDE)
            if side % 2:
                raise ValueError(f"found {name}={side}, expected an even number of pixels (4:2:0)")
        _check_integer("qp", self.qp, 1, 51)
        _check_integer("slice_mbs", self.slice_mbs, 0, self.mbs)
        for value in self.fps:
            _check_integer("fps", value, 1, 100_000)

    @property
    def mbs(self) -> int:
        """Macroblocks (16x16 pixels) of a frame."""
        return math.ceil(self.width / 16) * math.ceil(self.height / 16)

    @property
    def slices(self) -> int:
        """Slices of a frame."""
        return math.ceil(self.mbs / self.slice_mbs) if self.slice_mbs else 1

    @property
    def options(self) -> dict[str, str]:
        """x264's options by name; those that the paper states have its values."""
        own = {"qp": str(self.qp), "slice-max-mbs": str(self.slice_mbs)}
        return own | _FIXED

    @functools.cached_property
    def constants(self) -> Constants:
        """The constants of streams of these settings. Raises EncoderError: see `probe`."""
        return probe(self)

    def write(self, frames: Iterable[av.VideoFrame]) -> bytes:
        """Frames, yuv420p of this size -> the stream as x264 writes it, without SEI messages.

        Equal frames give equal bytes. Raises EncoderError, and ValueError for a frame of another
        size or pixel format.
        """
        stream, warnings = _encode(self, self.options, frames)
        if warnings:
            raise EncoderError(f"libx264 reports: {'; '.join(warnings)}")
        # x264 writes its SEI message once, before the first slice; the rest is not searched.
        first = _FIRST_SLICE.search(stream)
        cut = first.start() if first else len(stream)
        return without_sei(stream[:cut]) + stream[cut:]


def without_sei(stream: bytes) -> bytes:
    """The stream without its SEI messages: x264's version and options, which no decoder reads."""
    return b"".join(
        stream[nal.start : nal.end]
        for nal in bitstream.nals(stream)
        if nal.payload == nal.end or stream[nal.payload] & 31 != bitstream.SEI
    )


@functools.lru_cache(maxsize=64)
def probe(settings: AvcFormat) -> Constants:
    """Encodes frames of noise, checks that every option is in effect, and returns the constants.

    Raises:
      EncoderError: there is no libx264, it logs a message, or its list of options or the stream's
        parameter sets differ from the requested settings.
    """
    noise = np.random.default_rng(0).integers(
        0, 256, (settings.height * 3 // 2, settings.width), np.uint8
    )
    frames = [
        av.VideoFrame.from_ndarray(np.roll(noise, index, 1), format="yuv420p")
        for index in range(_PROBE_FRAMES)
    ]
    stream, warnings = _encode(settings, settings.options, frames)
    if warnings:
        raise EncoderError(f"libx264 rejected its options: {'; '.join(warnings)}")
    units = [stream[nal.payload : nal.end] for nal in bitstream.nals(stream)]
    sei = next((unit for unit in units if unit[0] & 31 == bitstream.SEI), b"")
    core = check_options(sei, settings.options)
    try:
        return _constants(settings, units, core)
    except bitstream.SyntaxFault as fault:
        raise EncoderError(f"libx264 wrote a stream of other settings: {fault}") from fault


def check_options(sei: bytes, requested: dict[str, str]) -> str:
    """Compares the options that x264 lists in its SEI message with the requested ones.

    Args:
      sei: the NAL unit of the SEI message.
      requested: x264's options by name, as in `AvcFormat.options`.

    Returns:
      x264's build, as in "core 165".

    Raises:
      EncoderError: the message lists no options, or some differ; it names all that differ.
    """
    text = sei.decode("latin-1")
    listed = dict(re.findall(r"([a-z0-9_]+)=(\S+?)(?=[\s\x00]|$)", text.partition("options:")[2]))
    core = re.search(r"core \d+", text)
    if not listed or core is None:
        raise EncoderError("libx264 listed no options, expected them in an SEI message")
    wrong = []
    for name, value in listed_options(requested).items():
        if listed.get(name) != value:
            wrong.append(f"{name}={listed.get(name)}, expected {value}")
    if wrong:
        raise EncoderError(f"libx264 uses other options than requested: {'; '.join(wrong)}")
    return core.group()


def listed_options(requested: dict[str, str]) -> dict[str, str]:
    """The options that x264 lists if the requested ones and those of baseline are in effect."""
    expected = {"cabac": "0", "8x8dct": "0", "weightp": "0", "rc": "cqp"}
    for option, value in requested.items():
        if option == "cpu-independent" or (option, value) == ("slice-max-mbs", "0"):
            continue  # not listed
        if option in _LISTED_AS and value == _FIXED[option]:
            name, value = _LISTED_AS[option]
        else:
            name = option.replace("-", "_")
        expected[name] = value
    return expected


def _constants(settings: AvcFormat, units: list[bytes], core: str) -> Constants:
    sps_nal, pps_nal = units[0], units[1]
    sps, pps = bitstream.parse_sps(sps_nal), bitstream.parse_pps(pps_nal)
    found = (sps.width, sps.height, pps.cabac, pps.weighted, pps.deblocking_control)
    if found != (settings.width, settings.height, False, False, True):
        raise bitstream.SyntaxFault(f"parameter sets {sps}, {pps}")
    slices = [
        bitstream.parse_slice(unit, sps, pps)
        for unit in units
        if unit[0] & 31 in (bitstream.SLICE, bitstream.IDR)
    ]
    if sum(header.first_mb == 0 for header in slices) != _PROBE_FRAMES:
        raise bitstream.SyntaxFault(f"not {_PROBE_FRAMES} frames")
    if len(slices) != _PROBE_FRAMES * settings.slices:
        raise bitstream.SyntaxFault(
            f"{len(slices)} slices for {_PROBE_FRAMES} frames, expected {settings.slices} each"
        )
    # x264 derives the QP of I slices from that of P slices.
    intra = max(0, round(settings.qp - 6 * math.log2(1.4)))
    qps = {bitstream.I: intra, bitstream.P: settings.qp}
    if any(header.qp != qps[header.slice_type] for header in slices):
        raise bitstream.SyntaxFault(
            f"slices of QP {sorted({h.qp for h in slices})}, expected {qps}"
        )
    deblocking = {header.slice_type: header.deblocking for header in slices}
    if deblocking.keys() != qps.keys():
        raise bitstream.SyntaxFault(f"slices of types {sorted(deblocking)}, expected both P and I")
    prefix = b"\x00\x00\x00\x01" + sps_nal + b"\x00\x00\x00\x01" + pps_nal
    return Constants(sps, pps, sps_nal, pps_nal, prefix, qps, deblocking, core)


def _encode(
    settings: AvcFormat, options: dict[str, str], frames: Iterable[av.VideoFrame]
) -> tuple[bytes, list[str]]:
    """(the whole stream, the messages that libx264 logged)."""
    time_base = Fraction(settings.fps[1], settings.fps[0])
    with libav.messages() as logs:
        encoder = _open(settings, options, time_base)
        packets: list[bytes] = []
        try:
            for index, frame in enumerate(frames):
                if (frame.width, frame.height) != (settings.width, settings.height):
                    raise ValueError(
                        f"frame {index} has {frame.width} x {frame.height} pixels, expected "
                        f"{settings.width} x {settings.height}"
                    )
                if frame.format.name != "yuv420p":
                    raise ValueError(f"frame {index} is {frame.format.name}, expected yuv420p")
                frame.pts, frame.time_base = index, time_base
                # Without this the encoder would use the type of the source's frame.
                frame.pict_type = PictureType.NONE
                packets += [bytes(packet) for packet in encoder.encode(frame)]
            packets += [bytes(packet) for packet in encoder.encode(None)]
        except av.FFmpegError as error:
            raise EncoderError(f"libx264 failed to encode: {error}") from error
    return b"".join(packets), [text.strip() for _, _, text in logs]


def _open(settings: AvcFormat, options: dict[str, str], time_base: Fraction) -> Any:
    try:
        encoder: Any = av.CodecContext.create(_CODEC, "w")
    except (av.FFmpegError, ValueError) as error:
        raise EncoderError(
            "this build of PyAV has no libx264, which encodes clips; install the wheel from PyPI "
            "(pip install --force-reinstall av) or build FFmpeg with --enable-libx264"
        ) from error
    encoder.width, encoder.height, encoder.pix_fmt = settings.width, settings.height, "yuv420p"
    encoder.time_base, encoder.framerate = time_base, 1 / time_base
    encoder.thread_count = 1
    params = ":".join(f"{name}={value}" for name, value in options.items())
    encoder.options = {"x264-params": params, "profile": "baseline"}
    return encoder


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"found {name}={value!r}, expected an integer from {low} to {high:,}")
