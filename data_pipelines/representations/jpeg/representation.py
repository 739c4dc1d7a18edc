"""The JPEG representation: baseline JPEG files as documents (JPEG-LM, arXiv 2408.08459).

The modelled stream is a file as libjpeg-turbo writes it, without the parts that `strip` removes:

    strip      stream                                              bytes before the scan (RGB)
    "none"     SOI APP0 DQT SOF0 DHT [DRI] SOS scan EOI            623, with restart markers 629
    "tables"   SOI APP0 SOF0 [DRI] SOS scan EOI (the paper)        53, 59
    "header"   scan EOI                                            0

The stripped parts are the same for every image, so `to_bytes` restores the whole file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import PIL
from PIL import Image, features

from data_pipelines.media import images
from data_pipelines.representations import base
from data_pipelines.representations.codewords.representation import CodewordRepresentation
from data_pipelines.representations.codewords.tokenizer import CodewordTokenizer
from data_pipelines.representations.jpeg import codeword_machine, coefficients, validity
from data_pipelines.representations.jpeg.byte_machine import JpegMachine, make_machine
from data_pipelines.representations.jpeg.codeword_streams import Streams
from data_pipelines.representations.jpeg.format import (
    EOI,
    MAX_SIDE,
    STRIPS,
    SUBSAMPLINGS,
    Geometry,
    JpegFormat,
)
from data_pipelines.representations.jpeg.salvage import Salvage, salvage_scan
from data_pipelines.representations.tokenizer import ByteTokenizer, Tokenizer

# Where the size comes from a header, which may be damaged, no more MCUs are decoded than this, or
# this many for each byte of the scan. A whole scan has at most 1.34 MCUs per byte (six bits each).
_MIN_MCUS, _MCUS_PER_BYTE = 4096, 32
_NO_SIZE = "the stream's header is damaged, so the image's size is unknown; expected a whole header"
_BYTES = ByteTokenizer()


@dataclasses.dataclass(frozen=True)
class JpegRepresentation(CodewordRepresentation):
    """Images as the bytes of baseline JPEG files.

    Attributes:
      size: side of the square that images are cropped and resized to; or (width, height); or None
        to keep each image's own size. The largest centred crop of that shape is used.
      mode: "RGB" or "L" (grey).
      quality: libjpeg's, 1-100.
      subsampling: of chroma, "4:4:4", "4:2:2" or "4:2:0"; ignored for grey.
      restart_interval: MCUs between restart markers (at most 65,535); 0 writes none.
      strip: what is removed from the stream: "none", "tables" or "header".
      tokenizer: bytes -> tokens: single bytes, BPE over bytes, or code words.

    Raises:
      ValueError: an option out of its range, or size=None with strip="header", because then
        neither the options nor the stream hold the size.
    """

    size: int | tuple[int, int] | None = 256
    mode: images.Mode = "RGB"
    quality: int = 25
    subsampling: str = "4:2:0"
    restart_interval: int = 1
    strip: str = "tables"
    tokenizer: Tokenizer = _BYTES

    name: ClassVar[str] = "jpeg"
    suffix: ClassVar[str] = ".jpg"

    def __post_init__(self) -> None:
        # Options with the same meaning become equal values, with one fingerprint.
        if isinstance(self.size, list):
            object.__setattr__(self, "size", tuple(self.size))
        if isinstance(self.size, tuple) and len(set(self.size)) == 1 and len(self.size) == 2:
            object.__setattr__(self, "size", self.size[0])
        if self.mode == "L" and self.subsampling in SUBSAMPLINGS:
            object.__setattr__(self, "subsampling", "4:4:4")
        if self.strip not in STRIPS:
            known = ", ".join(f'"{name}"' for name in STRIPS)
            raise ValueError(f"found strip={self.strip!r}, expected one of {known}")
        if self.size is None and self.strip == "header":
            raise ValueError(
                'found size=None with strip="header", which stores the size of an image nowhere; '
                'give a size, or strip="tables"'
            )
        if self.size is not None:
            _check_size(self.size)
        self.format  # noqa: B018  making it checks its options
        if isinstance(self.tokenizer, CodewordTokenizer):
            object.__setattr__(self, "tokenizer", self.tokenizer.with_streams(self.streams))

    @property
    def streams(self) -> Streams:
        """Reads and writes the streams as code words."""
        return Streams(self.format, self.strip, self.fixed_size)

    @property
    def format(self) -> JpegFormat:
        """The encoder's settings."""
        return JpegFormat(self.mode, self.quality, self.subsampling, self.restart_interval)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(width, height) of every image, or None where each has its own."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def encoder_versions(self) -> dict[str, str]:
        """Pillow and libjpeg-turbo."""
        turbo = features.version_feature("libjpeg_turbo")
        return {"pillow": PIL.__version__, "libjpeg": turbo or features.version("jpg") or "unknown"}

    # Media and files

    def encode(self, media: Image.Image) -> np.ndarray:
        """Image of any mode -> tokens, `token_dtype` [n]: normalised, cropped, resized, compressed.

        Raises ValueError for an image without pixels or with a side over 65,500.
        """
        return self.from_bytes(self.format.write(self.fit(media)))

    def fit(self, image: Image.Image) -> Image.Image:
        """The image that is compressed: of `mode` and `size`; see `images.fit`."""
        fitted = images.fit(image, self.mode, self.fixed_size)
        if self.fixed_size is None:
            _check_size(fitted.size)
        return fitted

    def decode(self, tokens: np.ndarray) -> Image.Image:
        """Tokens, integer [n] -> image, as an ordinary viewer shows `to_bytes(tokens)`.

        The stream is used up to its first EOI; EOI is appended if there is none. `salvage` decodes
        streams that Pillow cannot open, or opens with another size or mode. Other damage is not
        reported: see `validate`.

        Raises ValueError for a token that stands for no bytes, and if nothing can be shown.
        """
        stream = self.tokenizer.decode(tokens)
        self._require_bytes(stream)
        start = self._scan_start(stream)
        scan = stream[start:].partition(EOI)[0]
        try:
            image = images.open_image(self._restore(stream[:start] + scan + EOI))
        except images.ImageError:
            return self._salvage(stream).image
        # libjpeg decodes an empty scan to a uniformly grey image, which shows nothing of it.
        as_expected = image.mode == self.mode and image.size == (self.fixed_size or image.size)
        return image if scan and as_expected else self._salvage(stream).image

    def decode_prefix(self, tokens: np.ndarray) -> Image.Image:
        """A prompt -> the image with its MCUs; the others have the mean colour. See `salvage`."""
        return self.salvage(tokens).image

    def to_bytes(self, tokens: np.ndarray) -> bytes:
        """Tokens, integer [n] -> the whole JPEG file, byte for byte as the encoder wrote it.

        If the stream does not begin with the representation's own header, the tables are inserted
        right after its first two bytes. Raises ValueError for a token that stands for no bytes.
        """
        return self._restore(self.tokenizer.decode(tokens))

    def from_bytes(self, file: bytes) -> np.ndarray:
        """A whole JPEG file -> tokens, `token_dtype` [n].

        The scan is not validated here. Raises ValueError unless the header is that of these
        settings; decode and `encode` files of another size, mode, quality, sampling, or with other
        tables or comments.
        """
        return self.tokenizer.encode(self._strip(file))

    def _strip(self, file: bytes) -> bytes:
        for header in (self.format.header("none"), self.format.script_header()):
            size = self.fixed_size or header.size(file)
            if size is not None and file.startswith(header.at(*size)):
                stripped = self.format.header(self.strip).at(*size)
                return stripped + file[len(header.data) :]
        shape = "any size" if self.fixed_size is None else "{} x {}".format(*self.fixed_size)
        raise ValueError(
            f"the file's header is not that of a {self.mode} JPEG of {shape}, quality "
            f"{self.quality}, {self.subsampling}, restart interval {self.restart_interval} as "
            "libjpeg-turbo writes it; decode it and encode its pixels"
        )

    def _restore(self, stream: bytes) -> bytes:
        whole, stripped = self.format.header("none"), self.format.header(self.strip)
        size = self.fixed_size or stripped.size(stream) or (1, 1)
        header = stripped.at(*size)
        if stream.startswith(header):
            return whole.at(*size) + stream[len(header) :]
        if self.strip == "none":
            return stream
        return stream[:2] + self.format.tables() + stream[2:]

    def related_sizes(self, tokens: np.ndarray) -> dict[str, float]:
        """Bytes of the stream and the file with the same coefficients, without restart markers."""
        if not self.restart_interval:
            return {}
        plain = coefficients.with_restart_interval(self.to_bytes(tokens), self.format, 0)
        bare = dataclasses.replace(self, restart_interval=0, tokenizer=_BYTES)
        return {
            "stream_without_restarts_bytes": float(bare.from_bytes(plain).size),
            "file_without_restarts_bytes": float(len(plain)),
        }

    # Prompts, validation and salvage

    def prompt(self, tokens: np.ndarray, ratio: float) -> np.ndarray:
        """The leading tokens that hold int(ratio * rows) whole rows of MCUs.

        They are the tokens of the leading bytes: header, MCUs, and the restart marker after the
        last MCU. Without a marker there, a byte that the next row shares is not included; code
        words end where the row ends, or before it with a token that reaches into the next row.

        256x256 pixels in MCUs of 16x16 with a marker after each are cut as in the released script
        of JPEG-LM, just after the int(32 * ratio)-th FFD7: 32 groups of eight MCUs, two per row. As
        there, a ratio of 0 gives no tokens; less than a row gives the header, 1 the whole document.

        Raises ValueError for a ratio outside 0-1, and for a stream that is damaged before the cut.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"found a prefix ratio of {ratio}, expected a number from 0 to 1")
        if ratio == 0:
            return tokens[:0]
        stream = self.tokenizer.decode(tokens)
        header = self.format.header(self.strip)
        size = self._size(stream)
        geometry = self.format.geometry(*size)
        mcus = self._prompt_mcus(geometry, ratio)
        if isinstance(self.tokenizer, CodewordTokenizer):
            if mcus == geometry.mcus:
                return tokens
            letters = self.streams.leading(self.streams.read(stream), mcus)
            return self.tokenizer.leading(tokens, letters)
        end = validity.offset_after(stream, self.format, header, size, mcus)
        return self.tokenizer.encode(stream[:end])

    def prompt_share(self, tokens: np.ndarray, ratio: float) -> float:
        """The share of the image's MCUs before the cut of `prompt`, which raises ValueError."""
        self.prompt(tokens, ratio)
        geometry = self.format.geometry(*self._size(self.tokenizer.decode(tokens)))
        return self._prompt_mcus(geometry, ratio) / geometry.mcus

    def _size(self, stream: bytes) -> tuple[int, int]:
        """(width, height) of a stream. Raises ValueError for a damaged header."""
        size = self.fixed_size or self.format.header(self.strip).size(stream)
        if size is None:
            raise ValueError(_NO_SIZE)
        return size

    def _prompt_mcus(self, geometry: Geometry, ratio: float) -> int:
        """MCUs of a prompt: whole rows, or the half rows of the released script."""
        as_script = (geometry.columns, geometry.rows, self.restart_interval) == (16, 16, 1)
        step = 8 if as_script else geometry.columns
        return int(ratio * (geometry.mcus // step)) * step

    def validate(self, tokens: np.ndarray) -> base.Validity:
        """Strict validation of a document: see `validity.validate_streams`."""
        return self.validate_batch([tokens])[0]

    def validate_batch(self, documents: Sequence[np.ndarray]) -> list[base.Validity]:
        """`validate` of each document, tokens integer [n]; much faster than one at a time."""
        contents = [self._content(tokens) for tokens in documents]
        streams = [stream for stream, _ in contents]
        header = self.format.header(self.strip)
        results = validity.validate_streams(streams, self.format, header, self.fixed_size)
        return [
            _document_validity(result, len(stream), error)
            for result, (stream, error) in zip(results, contents, strict=True)
        ]

    def salvage(self, tokens: np.ndarray) -> Salvage:
        """Restores as much of a damaged document as possible, and reports what was filled in.

        Tokens that stand for no bytes are ignored. Raises ValueError if there is nothing to show,
        and with size=None if the header is damaged.
        """
        return self._salvage(self.tokenizer.decode(np.asarray(tokens)[self._is_content(tokens)]))

    def _salvage(self, stream: bytes) -> Salvage:
        header = self.format.header(self.strip)
        size = self.fixed_size or header.size(stream)
        if size is None:
            raise ValueError(_NO_SIZE)
        geometry = self.format.geometry(*size)
        self._require_bytes(stream)
        return salvage_scan(stream[self._scan_start(stream) :], self.format, geometry)

    def _require_bytes(self, stream: bytes) -> None:
        """Raises ValueError if the header states a size that the scan is far too short for."""
        header = self.format.header(self.strip)
        size = None if self.fixed_size else header.size(stream)
        if size is None:
            return
        scan = len(stream) - len(header.data)
        if self.format.geometry(*size).mcus > max(_MIN_MCUS, _MCUS_PER_BYTE * scan):
            raise ValueError(
                f"the header states {size[0]} x {size[1]} pixels, but only {scan:,} bytes follow; "
                "expected a size that they can fill"
            )

    def _scan_start(self, stream: bytes) -> int:
        """Offset of the scan, also in a stream whose header is damaged."""
        header = self.format.header(self.strip).data
        sos = self.format.header("none").data.rpartition(b"\xff\xda")[2]
        at = stream.find(b"\xff\xda" + sos, 0, 2 * len(header))
        return at + 2 + len(sos) if at >= 0 else min(len(header), len(stream))

    def byte_machine(self, size: tuple[int, int] | None = None) -> JpegMachine:
        """The byte machine of strictly valid streams; see `JpegMachine`.

        Args:
          size: (width, height), required if the representation has size=None.

        Raises ValueError if the size is missing or not this representation's.
        """
        size = self._size_of_one(size)
        return make_machine(self.format, self.format.header(self.strip).at(*size), size)

    def _size_of_one(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """The size of constrained images. Raises ValueError as `byte_machine`."""
        if size is not None and self.fixed_size not in (None, size):
            raise ValueError(
                f"found size {size}, expected {self.fixed_size}, that of the representation"
            )
        size = size or self.fixed_size
        if size is None:
            raise ValueError(
                "images have their own sizes; give the one to constrain them to, for example with "
                "--size"
            )
        _check_size(size)
        return size

    def token_machine(
        self, size: tuple[int, int] | None = None
    ) -> base.TokenMachine | base.TokenizedByteMachine:
        """The state machine over code words, or over the bytes of other tokens."""
        if isinstance(self.tokenizer, CodewordTokenizer):
            return codeword_machine.machine(self.tokenizer, self._size_of_one(size))
        return super().token_machine(size)

    def to_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": list(self.size) if isinstance(self.size, tuple) else self.size,
            "mode": self.mode,
            "quality": self.quality,
            "subsampling": self.subsampling,
            "restart_interval": self.restart_interval,
            "strip": self.strip,
            "tokenizer": self.tokenizer.to_config(),
        }


def _document_validity(
    result: validity.StreamValidity, length: int, token_error: str
) -> base.Validity:
    """The validity of a document whose stream, of this length, may end at a wrong token."""
    if token_error and (not result.error or result.byte >= length):
        return base.Validity(False, result.units, result.expected, token_error)
    return base.Validity(not result.error, result.units, result.expected, result.error)


def _check_size(size: Any) -> None:
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or not all(
        isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= MAX_SIDE
        for side in sides
    ):
        raise ValueError(
            f"found size {size!r}, expected a side or (width, height) in pixels, each from 1 to "
            f"{MAX_SIDE} (libjpeg's limit), or None for each image's own"
        )
