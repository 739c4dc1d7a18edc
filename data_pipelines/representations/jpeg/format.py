"""The encoder's settings, and the headers and geometry of the JPEG files that follow from them.

Sources: ITU-T T.81 (JPEG), B.2 (marker segments), A.1 and A.2 (sampling, MCUs). Headers are taken
from a file that libjpeg-turbo wrote with the same settings, not from constants.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import Image

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"
SOF0, DHT, RST0, SOS, DQT = 0xC0, 0xC4, 0xD0, 0xDA, 0xDB

MAX_SIDE = 65500  # libjpeg's JPEG_MAX_DIMENSION; the format itself ends at 65,535
STRIPS = ("none", "tables", "header")
SUBSAMPLINGS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}


class MarkerSegment(NamedTuple):
    """A marker segment (T.81, B.1.1.4): `data[start:end]`, including the marker itself."""

    marker: int
    start: int
    end: int


def marker_segments(data: bytes) -> Iterator[MarkerSegment]:
    """The marker segments after SOI, up to and including SOS.

    Raises ValueError with the offset where a marker segment is missing or too long.
    """
    at = 2
    while True:
        if len(data) < at + 4 or data[at] != 0xFF:
            raise ValueError(f"byte {at}: found no marker segment, expected one before the scan")
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = MarkerSegment(data[at + 1], at, at + 2 + length)
        if length < 2 or segment.end > len(data):
            raise ValueError(
                f"byte {at}: marker segment FF{segment.marker:02X} has a length of {length} bytes, "
                f"expected 2 to {len(data) - at - 2}"
            )
        yield segment
        if segment.marker == SOS:
            return
        at = segment.end


class Header(NamedTuple):
    """Everything before the scan, for any size of image.

    Attributes:
      data: the bytes, for one size.
      size_at: offset of height and width (16 bits each, big endian) in it; -1 if it has neither.
    """

    data: bytes
    size_at: int

    def at(self, width: int, height: int) -> bytes:
        """The header of an image of this size."""
        if self.size_at < 0:
            return self.data
        size = struct.pack(">HH", height, width)
        return self.data[: self.size_at] + size + self.data[self.size_at + 4 :]

    def size(self, stream: bytes) -> tuple[int, int] | None:
        """(width, height) in a stream's header; None for another header or a side of 0 pixels."""
        if self.size_at < 0 or len(stream) < len(self.data):
            return None
        height, width = struct.unpack_from(">HH", stream, self.size_at)
        right = width and height and stream.startswith(self.at(width, height))
        return (width, height) if right else None


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How an image of one size is cut into MCUs."""

    width: int
    height: int
    columns: int
    rows: int

    @property
    def mcus(self) -> int:
        return self.columns * self.rows


@dataclasses.dataclass(frozen=True)
class JpegFormat:
    """The settings of the encoder that determine the bytes of a file.

    Attributes:
      mode: "RGB" (stored as YCbCr) or "L".
      quality: libjpeg's 1-100.
      subsampling: of chroma, "4:4:4", "4:2:2" or "4:2:0"; "4:4:4" for grey.
      restart_interval: MCUs between restart markers; 0 writes none.
    """

    mode: str
    quality: int
    subsampling: str
    restart_interval: int

    def __post_init__(self) -> None:
        if self.mode not in ("RGB", "L"):
            raise ValueError(f'found mode={self.mode!r}, expected "RGB" or "L"')
        _check_integer("quality", self.quality, 1, 100)
        _check_integer("restart_interval", self.restart_interval, 0, 65535)
        if self.subsampling not in SUBSAMPLINGS:
            known = ", ".join(f'"{name}"' for name in SUBSAMPLINGS)
            raise ValueError(f"found subsampling={self.subsampling!r}, expected one of {known}")
        if self.mode == "L" and self.subsampling != "4:4:4":
            raise ValueError('a grey image has no chroma: expected subsampling="4:4:4"')

    @property
    def sampling(self) -> tuple[tuple[int, int], ...]:
        """Blocks (across, down) of each component in an MCU."""
        if self.mode == "L":
            return ((1, 1),)
        return (SUBSAMPLINGS[self.subsampling], (1, 1), (1, 1))

    @property
    def block_components(self) -> tuple[int, ...]:
        """The component of each block of an MCU, in the order of the scan (T.81 A.2.3)."""
        return tuple(
            component
            for component, (across, down) in enumerate(self.sampling)
            for _ in range(across * down)
        )

    @property
    def mcu_size(self) -> tuple[int, int]:
        """Pixels (width, height) of an MCU."""
        across, down = self.sampling[0]
        return 8 * across, 8 * down

    def geometry(self, width: int, height: int) -> Geometry:
        """How an image of this size is cut into MCUs."""
        mcu_width, mcu_height = self.mcu_size
        return Geometry(width, height, -(-width // mcu_width), -(-height // mcu_height))

    def write(self, image: Image.Image, streamtype: int = 0) -> bytes:
        """The JPEG file of an image.

        Args:
          image: of this mode; its size is kept.
          streamtype: Pillow's: 0 the whole file, 1 only the tables, 2 without tables.
        """
        options: dict[str, Any] = {}
        if self.restart_interval:
            options["restart_marker_blocks"] = self.restart_interval
        out = io.BytesIO()
        image.save(
            out,
            format="JPEG",
            quality=self.quality,
            subsampling=self.subsampling,
            streamtype=streamtype,
            **options,
        )
        return out.getvalue()

    def header(self, strip: str = "none") -> Header:
        """The bytes before the scan in a file stripped this way, one of `STRIPS`."""
        return _header(self, strip)

    def tables(self) -> bytes:
        """The quantisation and Huffman tables, as DQT and DHT marker segments."""
        return _tables(self)

    def script_header(self) -> Header:
        """The header as JPEG-LM's released script writes it: tables right after SOI."""
        stripped, tables = self.header("tables"), self.tables()
        data = stripped.data[:2] + tables + stripped.data[2:]
        return Header(data, stripped.size_at + len(tables))


@functools.lru_cache(maxsize=64)
def _header(settings: JpegFormat, strip: str) -> Header:
    if strip == "header":
        return Header(b"", -1)
    file = settings.write(Image.new(settings.mode, (1, 1)), 2 if strip == "tables" else 0)
    found = list(marker_segments(file))
    frame = next(segment for segment in found if segment.marker == SOF0)
    # SOF0: marker, length (2 bytes each), precision (1), then height and width.
    return Header(file[: found[-1].end], frame.start + 5)


@functools.lru_cache(maxsize=64)
def _tables(settings: JpegFormat) -> bytes:
    return settings.write(Image.new(settings.mode, (1, 1)), streamtype=1)[2:-2]


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"found {name}={value!r}, expected a whole number from {low} to {high}")
