"""H.264 streams as documents (AVC-LM, arXiv 2408.08459).

The modelled stream is a clip as x264 writes it in Annex B form, less its SEI messages (x264's
version and options, about 612 bytes), and less what is stripped:

    strip      stream                                                      bytes before the slices
    "none"     SPS PPS slices, the sets again before every later IDR       36 at the paper's setting
    "headers"  slices                                                      0

The parameter sets are the same for every clip, so `to_bytes` gives the whole stream back.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import av
import numpy as np

from data_pipelines.media import videos
from data_pipelines.representations import base
from data_pipelines.representations import tokenizer as tokenizers
from data_pipelines.representations.avc import bitstream as bitstream
from data_pipelines.representations.avc import byte_machine as avc_machine
from data_pipelines.representations.avc import decoder, validity
from data_pipelines.representations.avc.decoder import Decoded
from data_pipelines.representations.avc.encoder import STRIPS, AvcFormat, without_sei
from data_pipelines.sources.base import Kind

# The first slice of an IDR picture (its first_mb_in_slice, 0, is a single bit 1), as x264 writes it
# behind parameter sets: with the short start code.
_IDR_SLICE = re.compile(rb"\x00\x00\x01\x65(?=[\x80-\xff])", re.DOTALL)
_MAX_FRAMES = 100_000
_BYTES = tokenizers.ByteTokenizer()


@dataclasses.dataclass(frozen=True)
class AvcRepresentation(base.TokenizedRepresentation):
    """Clips as the bytes of H.264 streams.

    Attributes:
      size: (width, height), even; videos are scaled to fit into it and padded with black.
      fps: frames a second, an integer or (numerator, denominator).
      frames: of a clip; a longer video gives several clips, cut by time.
      min_frames: of the shortest clip that is kept, what is left at a video's end among them;
        None keeps none that is shorter than `frames`.
      qp: the constant quantiser of P frames, 1-51.
      slice_mbs: macroblocks of a slice; 0 makes each frame one slice. 1 is to video what a restart
        marker after each MCU is to JPEG.
      strip: what the stream leaves out: "none" or "headers".
      tokenizer: bytes -> tokens.

    Raises:
      ValueError: an option out of its range.
      EncoderError: there is no libx264, or it does not take its options.
    """

    size: tuple[int, int] = (256, 144)
    fps: int | tuple[int, int] = 3
    frames: int = 15
    min_frames: int | None = None
    qp: int = 37
    slice_mbs: int = 1
    strip: str = "none"
    tokenizer: tokenizers.Tokenizer = _BYTES

    name: ClassVar[str] = "avc"
    suffix: ClassVar[str] = ".h264"
    medium: ClassVar[str] = "clip"
    kind: ClassVar[Kind] = "video"

    def __post_init__(self) -> None:
        # Spellings of one meaning become equal values, with one fingerprint.
        for name in ("size", "fps"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.fps, tuple) and len(self.fps) == 2 and self.fps[1] == 1:
            object.__setattr__(self, "fps", self.fps[0])
        if self.min_frames == self.frames:
            object.__setattr__(self, "min_frames", None)
        if not isinstance(self.size, tuple) or len(self.size) != 2:
            raise ValueError(f"found size={self.size!r}, expected (width, height) in pixels")
        if isinstance(self.fps, tuple) and len(self.fps) != 2:
            raise ValueError(
                f"found fps={self.fps!r}, expected a number or (numerator, denominator)"
            )
        if self.strip not in STRIPS:
            known = ", ".join(f'"{name}"' for name in STRIPS)
            raise ValueError(f"found strip={self.strip!r}, expected one of {known}")
        _check_frames("frames", self.frames, _MAX_FRAMES)
        if self.min_frames is not None:
            _check_frames("min_frames", self.min_frames, self.frames)
        self.format.constants  # noqa: B018  the encoder is checked by asking for them

    @property
    def format(self) -> AvcFormat:
        """The encoder's settings."""
        return AvcFormat(*self.size, self.rate, self.qp, self.slice_mbs)

    @property
    def rate(self) -> tuple[int, int]:
        """Frames a second as (numerator, denominator)."""
        return self.fps if isinstance(self.fps, tuple) else (self.fps, 1)

    @property
    def least(self) -> int:
        """Frames of the shortest clip."""
        return self.frames if self.min_frames is None else self.min_frames

    @property
    def encoder_versions(self) -> dict[str, str]:
        """PyAV, x264's build and the libraries that decode and scale."""
        libraries = {
            name: ".".join(map(str, av.library_versions[name]))
            for name in ("libavcodec", "libavformat", "libavfilter", "libswscale")
        }
        return {"pyav": av.__version__, "x264": self.format.constants.core, **libraries}

    # Media and files

    def open(self, data: bytes) -> Iterator[list[av.VideoFrame]]:
        """The clips of a video file, in order: frames as `fit` gives them.

        Raises videos.VideoError: see `videos.read_clips`.
        """
        yield from videos.read_clips(
            data, size=self.size, fps=self.rate, frames=self.frames, least=self.least
        )

    def encode(self, media: np.ndarray | Sequence[av.VideoFrame]) -> np.ndarray:
        """A clip -> tokens, uint16 [n].

        Args:
          media: frames at `fps`: uint8 [T, height, width, 3] (RGB), or a sequence of PyAV's
            frames, of any size. No more than `frames` of them are taken.

        Raises ValueError for a clip that is too short, or of other samples.
        """
        return self.tokenizer.encode(self._strip(self.format.write(self.fit(media))))

    def fit(self, media: np.ndarray | Sequence[av.VideoFrame]) -> list[av.VideoFrame]:
        """The frames that are compressed: yuv420p of `size`, scaled to fit and padded."""
        if isinstance(media, np.ndarray):
            media = _frames_of(media)
        frames = list(media)[: self.frames]
        if len(frames) < self.least:
            raise ValueError(f"the clip has {len(frames)} frames, expected at least {self.least}")
        fitter = videos.Fitter(self.size)
        return [fitter.fit(frame) for frame in frames]

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens, integer [n] -> frames, uint8 [T, height, width, 3], RGB.

        T is the number of frames begun, at least the shortest clip's, at most `frames`. Those that
        do not come out of the decoder repeat the one before: see `salvage`, which tells which.

        Raises ValueError for a token that stands for no bytes, and where nothing can be shown.
        """
        return self._decode(self.tokenizer.decode(tokens)).frames

    def salvage(self, tokens: np.ndarray) -> Decoded:
        """What can be shown of a document, damaged or not, and what the decoder says of it.

        Tokens that stand for no bytes are passed over, and so is all that is no slice: parameter
        sets are these settings' own. Raises ValueError if not one frame comes out.
        """
        return self._decode(self.tokenizer.decode(np.asarray(tokens)[self._is_content(tokens)]))

    def to_bytes(self, tokens: np.ndarray) -> bytes:
        """Tokens, integer [n] -> the whole stream (Annex B), byte for byte the encoder's, less SEI.

        Players that want a container get one from `avc_mp4.to_mp4`. Raises ValueError for a token
        that stands for no bytes.
        """
        return self._restore(self.tokenizer.decode(tokens))

    def from_bytes(self, file: bytes) -> np.ndarray:
        """A whole Annex B stream -> tokens, uint16 [n].

        Raises ValueError unless its parameter sets are those of these settings (a stream of
        another size, rate or encoder: decode and `encode` it). Its slices are not judged here.
        """
        stream = without_sei(file)
        if not stream.startswith(self.format.constants.prefix):
            raise ValueError(
                f"the stream's parameter sets are not x264's for {self.size[0]} x {self.size[1]} "
                f"pixels, {self.fps} frames a second and QP {self.qp}; decode it and encode it anew"
            )
        return self.tokenizer.encode(self._strip(stream))

    def _strip(self, stream: bytes) -> bytes:
        if self.strip == "none":
            return stream
        # Parameter sets lie before IDR pictures, and nowhere else are the same bytes.
        return stream.replace(self.format.constants.prefix, b"")

    def _restore(self, stream: bytes) -> bytes:
        if self.strip == "none":
            return stream
        prefix = self.format.constants.prefix
        restored = _IDR_SLICE.sub(lambda found: prefix + found.group(), stream)
        return restored if restored.startswith(prefix) else prefix + restored

    def _decode(self, stream: bytes) -> Decoded:
        return decoder.decode(_slices_only(stream), self.format, least=self.least, most=self.frames)

    # Parts and judgement

    def prompt(self, tokens: np.ndarray, ratio: float) -> np.ndarray:
        """The leading tokens that hold int(ratio * frames) whole frames: a cut at an access unit.

        They are the tokens of the leading bytes, up to the start code (or parameter sets) of the
        next frame. `frames` are those of the document. A ratio of 0 gives what lies before the
        first frame: nothing; with strip="none" the parameter sets, which start every document.

        Raises ValueError for a ratio outside 0-1, and for a stream that is damaged before the cut.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"found a prefix ratio of {ratio}, expected one from 0 to 1")
        stream = self.tokenizer.decode(tokens)
        walk = self._walk(stream)
        total = self.frames if self.min_frames is None else len(decoder.access_units(stream))
        frames = int(ratio * total + 1e-9)
        if walk.frames < frames:
            raise ValueError(
                f"the stream is damaged before the cut at frame {frames}: {walk.error}"
            )
        if frames == 0:
            end = len(self.format.constants.prefix) if self.strip == "none" else 0
        elif frames < len(walk.starts):
            end = walk.starts[frames]
        elif walk.error and frames < total:
            raise ValueError(f"the stream is damaged at the cut at frame {frames}: {walk.error}")
        else:
            end = len(stream)
        return self.tokenizer.encode(stream[:end])

    def validate(self, tokens: np.ndarray) -> base.Validity:
        """Judges a document strictly: could the encoder have written it?

        Its structure is walked and its macroblocks are read to the last bit: see `validity`.
        """
        return self.validate_batch([tokens])[0]

    def validate_batch(self, documents: Sequence[np.ndarray]) -> list[base.Validity]:
        """`validate` of each document; many at a time take less than one after the other."""
        contents = [self._content(tokens) for tokens in documents]
        walks = validity.validate(
            [stream for stream, _ in contents],
            self.format,
            headers=self.strip == "none",
            least=self.least,
            most=self.frames,
        )
        return [
            base.Validity(
                not (token_error or walk.error),
                walk.frames,
                # A valid document is as long as it says.
                self.frames if token_error or walk.error else walk.frames,
                token_error or walk.error,
            )
            for (_, token_error), walk in zip(contents, walks, strict=True)
        ]

    def _walk(self, stream: bytes) -> validity.Walk:
        return validity.walk(
            stream,
            self.format,
            headers=self.strip == "none",
            least=self.least,
            most=self.frames,
        )

    def byte_machine(self, size: tuple[int, int] | None = None) -> avc_machine.AvcMachine:
        """What may follow in a stream, to the last bit of its macroblocks."""
        if size not in (None, self.size):
            raise ValueError(f"found size {size}, expected {self.size}, which clips here have")
        return avc_machine.machine(
            self.format, headers=self.strip == "none", least=self.least, most=self.frames
        )

    def to_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": list(self.size),
            "fps": list(self.fps) if isinstance(self.fps, tuple) else self.fps,
            "frames": self.frames,
            "min_frames": self.min_frames,
            "qp": self.qp,
            "slice_mbs": self.slice_mbs,
            "strip": self.strip,
            "tokenizer": self.tokenizer.to_config(),
        }


def _slices_only(stream: bytes) -> bytes:
    """The slices of a stream; the decoder has the parameter sets from elsewhere."""
    return b"".join(
        stream[nal.start : nal.end]
        for nal in bitstream.nals(stream)
        if nal.payload < nal.end and stream[nal.payload] & 31 in (bitstream.SLICE, bitstream.IDR)
    )


def _frames_of(pixels: np.ndarray) -> list[av.VideoFrame]:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(
            f"found {pixels.dtype} {list(pixels.shape)}, expected frames as uint8 "
            "[frames, height, width, 3]"
        )
    return [
        av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in pixels
    ]


def _check_frames(name: str, value: Any, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"found {name}={value!r}, expected an integer from 1 to {most:,}")
