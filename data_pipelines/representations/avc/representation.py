"""The AVC representation: H.264 streams as documents (AVC-LM, arXiv 2408.08459).

The modelled stream is a clip as x264 writes it in Annex B form, without its SEI messages (x264's
version and options, about 612 bytes) and without the parts that `strip` removes:

    strip      stream                                                      bytes before the slices
    "none"     SPS PPS slices, the sets again before every later IDR       36 at the paper's setting
    "headers"  slices                                                      0

The parameter sets are the same for every clip, so `to_bytes` restores the whole stream.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import av
import numpy as np

from data_pipelines.media import Kind, videos
from data_pipelines.representations import base
from data_pipelines.representations.avc import bitstream, decoder, validity
from data_pipelines.representations.avc.byte_machine import AvcMachine, make_machine
from data_pipelines.representations.avc.codewords import machine
from data_pipelines.representations.avc.codewords.streams import Streams
from data_pipelines.representations.avc.decoder import Decoded
from data_pipelines.representations.avc.encoder import STRIPS, AvcFormat, without_sei
from data_pipelines.representations.avc.mp4 import to_mp4
from data_pipelines.representations.codewords.representation import CodewordRepresentation
from data_pipelines.representations.codewords.tokenizer import CodewordTokenizer
from data_pipelines.representations.tokenizer import ByteTokenizer, Tokenizer

# The first slice of an IDR picture (its first_mb_in_slice, 0, is a single bit 1), as x264 writes it
# after parameter sets: with the start code of three bytes.
_IDR_SLICE = re.compile(rb"\x00\x00\x01\x65(?=[\x80-\xff])", re.DOTALL)
_MAX_FRAMES = 100_000
_BYTES = ByteTokenizer()


@dataclasses.dataclass(frozen=True)
class AvcRepresentation(CodewordRepresentation):
    """Clips as the bytes of H.264 streams.

    Attributes:
      size: (width, height) in pixels, even; videos are scaled to fit into it and padded with black.
      fps: frames per second, an integer or (numerator, denominator).
      frames: max frames of a clip; a longer video gives several consecutive clips.
      min_frames: min frames of a clip, also of the rest at the end of a video; None for `frames`.
      qp: the constant quantiser of P frames, 1-51.
      slice_mbs: macroblocks per slice; 0 makes each frame one slice. 1 corresponds to a restart
        marker after each MCU in JPEG.
      strip: what is removed from the stream: "none" or "headers".
      places: whether code words say which block of a macroblock they are of, see
        `codewords.alphabet`; no other tokens depend on it.
      tokenizer: bytes -> tokens: single bytes, BPE over bytes, or code words.

    Raises:
      ValueError: an option out of its range.
      EncoderError: there is no libx264, or it does not use the options.
    """

    size: tuple[int, int] = (256, 144)
    fps: int | tuple[int, int] = 3
    frames: int = 15
    min_frames: int | None = None
    qp: int = 37
    slice_mbs: int = 1
    strip: str = "none"
    places: bool = False
    tokenizer: Tokenizer = _BYTES

    name: ClassVar[str] = "avc"
    suffix: ClassVar[str] = ".h264"
    medium: ClassVar[str] = "clip"
    kind: ClassVar[Kind] = "video"

    def __post_init__(self) -> None:
        # Options with the same meaning become equal values, with one fingerprint.
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
        self.format.constants  # noqa: B018  computing them checks the encoder
        if isinstance(self.tokenizer, CodewordTokenizer):
            object.__setattr__(self, "tokenizer", self.tokenizer.with_streams(self.streams))

    @property
    def streams(self) -> Streams:
        """Reads and writes the streams as code words."""
        return Streams(self.format, self.strip == "none", self.places)

    @property
    def format(self) -> AvcFormat:
        """The encoder's settings."""
        return AvcFormat(*self.size, self.rate, self.qp, self.slice_mbs)

    @property
    def rate(self) -> tuple[int, int]:
        """Frames per second as (numerator, denominator)."""
        return self.fps if isinstance(self.fps, tuple) else (self.fps, 1)

    @property
    def min_clip_frames(self) -> int:
        """Min frames of a clip."""
        return self.frames if self.min_frames is None else self.min_frames

    @property
    def fixed_size(self) -> tuple[int, int]:
        """(width, height) of every frame."""
        return self.size

    @property
    def encoder_versions(self) -> dict[str, str]:
        """Versions of PyAV, x264 and the libraries that decode and scale."""
        libraries = {
            name: ".".join(map(str, av.library_versions[name]))
            for name in ("libavcodec", "libavformat", "libavfilter", "libswscale")
        }
        return {"pyav": av.__version__, "x264": self.format.constants.core, **libraries}

    # Media and files

    def open(self, data: bytes) -> Iterator[list[av.VideoFrame]]:
        """Yields the clips of a video file, in order: frames fitted to `size`.

        Raises videos.VideoError: see `videos.read_clips`.
        """
        yield from videos.read_clips(
            data,
            size=self.size,
            fps=self.rate,
            frames=self.frames,
            min_frames=self.min_clip_frames,
        )

    def encode(self, media: np.ndarray | Sequence[av.VideoFrame]) -> np.ndarray:
        """A clip -> tokens, `token_dtype` [n].

        Args:
          media: frames at `fps`: uint8 [T, height, width, 3] (RGB), or a sequence of PyAV's
            frames, of any size. Only the first `frames` are used.

        Raises:
          ValueError: the clip is too short, or an array of another dtype or shape.
        """
        return self.tokenizer.encode(self._strip(self.format.write(self._fit_frames(media))))

    def fit(self, media: np.ndarray | Sequence[av.VideoFrame]) -> np.ndarray:
        """The frames that are compressed, scaled to fit `size` and padded: uint8 [T, H, W, 3]."""
        return np.stack([frame.to_ndarray(format="rgb24") for frame in self._fit_frames(media)])

    def _fit_frames(self, media: np.ndarray | Sequence[av.VideoFrame]) -> list[av.VideoFrame]:
        """The same as yuv420p."""
        if isinstance(media, np.ndarray):
            media = _frames_of(media)
        frames = list(media)[: self.frames]
        if len(frames) < self.min_clip_frames:
            raise ValueError(
                f"the clip has {len(frames)} frames, expected at least {self.min_clip_frames}"
            )
        fitter = videos.Fitter(self.size)
        return [fitter.fit(frame) for frame in frames]

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens, integer [n] -> frames, uint8 [T, height, width, 3], RGB.

        T is the number of frames in the stream, at least `min_clip_frames`, at most `frames`.
        Frames that cannot be decoded repeat the previous one; `salvage` reports which.

        Raises ValueError for a token that stands for no bytes, and if no frame can be decoded.
        """
        return self._decode(self.tokenizer.decode(tokens)).frames

    def salvage(self, tokens: np.ndarray) -> Decoded:
        """Decodes as much as possible of a damaged document, with the errors of the decoder.

        Tokens that stand for no bytes are ignored, and so are NAL units other than slices: the
        decoder uses the parameter sets of these settings.

        Raises ValueError if no frame can be decoded.
        """
        return self._decode(self.tokenizer.decode(np.asarray(tokens)[self._is_content(tokens)]))

    def decode_with_damage(self, tokens: np.ndarray) -> base.Decoded:
        """The frames that `salvage` returns, and how many of them are missing or damaged."""
        found = self.salvage(tokens)
        return base.Decoded(found.frames, len(found.missing), len(found.corrupt))

    def decode_prefix(self, tokens: np.ndarray) -> np.ndarray:
        """A prompt -> its whole frames, uint8 [T, H, W, 3]."""
        return self.decode(tokens)[: self.validate(tokens).units]

    def playable(self, tokens: np.ndarray) -> tuple[str, bytes]:
        """The stream in an MP4 container, not encoded again."""
        return ".mp4", to_mp4(self.to_bytes(tokens), self.rate)

    def reencoded(self, tokens: np.ndarray) -> tuple[str, bytes]:
        """The frames that `salvage` returns, encoded again, in an MP4 container."""
        frames = self._fit_frames(self.salvage(tokens).frames)
        return ".mp4", to_mp4(self.format.write(frames), self.rate)

    def to_bytes(self, tokens: np.ndarray) -> bytes:
        """Tokens, integer [n] -> the whole stream (Annex B), as the encoder wrote it, without SEI.

        `mp4.to_mp4` puts it into a container for players that need one. Raises ValueError for a
        token that stands for no bytes.
        """
        return self._restore(self.tokenizer.decode(tokens))

    def from_bytes(self, file: bytes) -> np.ndarray:
        """A whole Annex B stream -> tokens, `token_dtype` [n].

        The slices are not validated here. Raises ValueError unless the parameter sets are those of
        these settings; decode and `encode` streams of another size, rate or encoder.
        """
        stream = without_sei(file)
        if not stream.startswith(self.format.constants.prefix):
            raise ValueError(
                f"the stream's parameter sets are not x264's for {self.size[0]} x {self.size[1]} "
                f"pixels, {self.fps} frames per second and QP {self.qp}; decode and encode it again"
            )
        return self.tokenizer.encode(self._strip(stream))

    def _strip(self, stream: bytes) -> bytes:
        if self.strip == "none":
            return stream
        # These bytes occur only before IDR pictures.
        return stream.replace(self.format.constants.prefix, b"")

    def _restore(self, stream: bytes) -> bytes:
        if self.strip == "none":
            return stream
        prefix = self.format.constants.prefix
        restored = _IDR_SLICE.sub(lambda found: prefix + found.group(), stream)
        return restored if restored.startswith(prefix) else prefix + restored

    def _decode(self, stream: bytes) -> Decoded:
        return decoder.decode(
            _slices_only(stream),
            self.format,
            min_frames=self.min_clip_frames,
            max_frames=self.frames,
        )

    # Prompts and validation

    def prompt(self, tokens: np.ndarray, ratio: float) -> np.ndarray:
        """The leading tokens that hold int(ratio * frames) whole frames, cut at an access unit.

        They are the tokens of the leading bytes, up to the start code (or parameter sets) of the
        next frame; of code words without a token that reaches into it. `frames` is the number of
        frames in the document. A ratio of 0 gives no tokens; with strip="none" the parameter sets
        that every document begins with.

        Raises ValueError for a ratio outside 0-1, and for a stream that is damaged before the cut.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"found a prefix ratio of {ratio}, expected a number from 0 to 1")
        stream = self.tokenizer.decode(tokens)
        found = self._validate_structure(stream)
        frames, total = self._prompt_frames(stream, ratio)
        if found.frames < frames:
            raise ValueError(
                f"the stream is damaged before the cut at frame {frames}: {found.error}"
            )
        if frames == 0:
            # The word of a slice has the parameter sets before it.
            in_words = isinstance(self.tokenizer, CodewordTokenizer)
            headers = self.strip == "none" and not in_words
            end = len(self.format.constants.prefix) if headers else 0
        elif frames < len(found.starts):
            end = found.starts[frames]
        elif found.error and frames < total:
            raise ValueError(f"the stream is damaged at the cut at frame {frames}: {found.error}")
        else:
            end = len(stream)
        if isinstance(self.tokenizer, CodewordTokenizer):
            return self.tokenizer.leading(tokens, self.tokenizer.streams.read(stream[:end]))
        return self.tokenizer.encode(stream[:end])

    def prompt_share(self, tokens: np.ndarray, ratio: float) -> float:
        """The share of the clip's frames before the cut of `prompt`, which raises ValueError."""
        self.prompt(tokens, ratio)
        frames, total = self._prompt_frames(self.tokenizer.decode(tokens), ratio)
        return frames / total

    def _prompt_frames(self, stream: bytes, ratio: float) -> tuple[int, int]:
        """(frames of a prompt, frames of the document)."""
        total = self.frames if self.min_frames is None else len(decoder.access_units(stream))
        return int(ratio * total + 1e-9), total

    def validate(self, tokens: np.ndarray) -> base.Validity:
        """Strict validation of a document: could the encoder have written it?

        Structure and macroblocks are validated to the last bit; see `validity.validate_streams`.
        """
        return self.validate_batch([tokens])[0]

    def validate_batch(self, documents: Sequence[np.ndarray]) -> list[base.Validity]:
        """`validate` of each document; faster for many documents at a time."""
        contents = [self._content(tokens) for tokens in documents]
        results = validity.validate_streams(
            [stream for stream, _ in contents],
            self.format,
            headers=self.strip == "none",
            min_frames=self.min_clip_frames,
            max_frames=self.frames,
        )
        return [
            base.Validity(
                not (token_error or found.error),
                found.frames,
                # A valid document has as many frames as it has.
                self.frames if token_error or found.error else found.frames,
                token_error or found.error,
            )
            for (_, token_error), found in zip(contents, results, strict=True)
        ]

    def _validate_structure(self, stream: bytes) -> validity.StreamValidity:
        return validity.validate_structure(
            stream,
            self.format,
            headers=self.strip == "none",
            min_frames=self.min_clip_frames,
            max_frames=self.frames,
        )

    def _check_size(self, size: tuple[int, int] | None) -> None:
        """Raises ValueError for the size of constrained clips if they have another one."""
        if size not in (None, self.size):
            raise ValueError(f"found size {size}, expected {self.size}, that of the representation")

    def byte_machine(self, size: tuple[int, int] | None = None) -> AvcMachine:
        """The byte machine of valid streams, to the last bit of their macroblocks."""
        self._check_size(size)
        return make_machine(
            self.format,
            headers=self.strip == "none",
            min_frames=self.min_clip_frames,
            max_frames=self.frames,
        )

    def token_machine(
        self, size: tuple[int, int] | None = None
    ) -> base.TokenMachine | base.TokenizedByteMachine:
        """The state machine over code words, or over the bytes of other tokens."""
        if isinstance(self.tokenizer, CodewordTokenizer):
            self._check_size(size)
            return machine.machine(self.tokenizer, self.min_clip_frames, self.frames)
        return super().token_machine(size)

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
            "places": self.places,
            "tokenizer": self.tokenizer.to_config(),
        }


def _slices_only(stream: bytes) -> bytes:
    """The slice NAL units of a stream, with their start codes."""
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


def _check_frames(name: str, value: Any, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise ValueError(f"found {name}={value!r}, expected an integer from 1 to {high:,}")
