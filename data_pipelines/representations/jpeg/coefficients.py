"""Baseline JPEG scans <-> quantised DCT coefficients, and a slow reference test for valid files.

The reader accepts damaged data as ordinary decoders do. The writer has one way to write
coefficients (ITU-T T.81, F.1.2). A file is canonical if reading and writing it gives the same
bytes. That needs no list of possible faults, so tests compare `validity`, which is much faster and
reports where the damage is, with `is_canonical`. `salvage` uses the reader and the writer.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from data_pipelines.representations.jpeg.format import (
    EOI,
    SOF0,
    Geometry,
    JpegFormat,
    marker_segments,
)
from data_pipelines.representations.jpeg.huffman import (
    EOB,
    ZRL,
    HuffmanTable,
    block_tables,
    read_tables,
)

_MIN_BLOCK_BITS = 4  # two codes of two bits


class DecodedSegment(NamedTuple):
    """The MCUs of one entropy-coded segment.

    Attributes:
      blocks: coefficients in zigzag order, the DC value absolute, int64 [mcus, blocks, 64].
      whole: MCUs read before the first fault.
      exact: whether all MCUs were read without a fault and less than a byte is left over.
    """

    blocks: np.ndarray
    whole: int
    exact: bool


def is_canonical(file: bytes, settings: JpegFormat, size: tuple[int, int] | None = None) -> bool:
    """Whether writing the coefficients of a whole JPEG file gives the same bytes.

    Args:
      file: any bytes.
      settings: of the encoder that the file is compared with.
      size: (width, height) that the image must have; None allows any.
    """
    try:
        geometry, scan = _read_frame(file, settings)
        blocks = _read_scan(file[scan:], settings, geometry)
        rewritten = write_file(blocks, settings, geometry)
    except ValueError:
        return False
    return rewritten == file and size in (None, (geometry.width, geometry.height))


def write_file(blocks: np.ndarray, settings: JpegFormat, geometry: Geometry) -> bytes:
    """The whole file of these coefficients, int [mcus, blocks, 64] as in `DecodedSegment`.

    Raises ValueError for a coefficient that has no code.
    """
    header = settings.header().at(geometry.width, geometry.height)
    return header + _write_scan(blocks, settings) + EOI


def with_restart_interval(file: bytes, settings: JpegFormat, interval: int) -> bytes:
    """The same coefficients as a file with another restart interval; 0 writes no markers.

    Raises ValueError unless the file is canonical for these settings.
    """
    geometry, scan = _read_frame(file, settings)
    blocks = _read_scan(file[scan:], settings, geometry)
    if write_file(blocks, settings, geometry) != file:
        raise ValueError(
            "the file is not canonical for these settings; decode it and encode its pixels"
        )
    return write_file(blocks, dataclasses.replace(settings, restart_interval=interval), geometry)


# Reading


def _read_frame(file: bytes, settings: JpegFormat) -> tuple[Geometry, int]:
    """(geometry, offset of the scan) of a file whose Huffman tables are those of the settings."""
    found = list(marker_segments(file))
    frames = [segment for segment in found if segment.marker == SOF0]
    scan = found[-1].end
    if len(frames) != 1 or frames[0].end - frames[0].start < 9:
        raise ValueError(f"found {len(frames)} baseline frames, expected one with a size")
    if read_tables(file[:scan]) != read_tables(settings.header().data):
        raise ValueError("the Huffman tables are not those of the settings")
    at = frames[0].start + 5
    height, width = (int.from_bytes(file[i : i + 2], "big") for i in (at, at + 2))
    geometry = settings.geometry(width, height)
    bits = geometry.mcus * len(settings.block_components) * _MIN_BLOCK_BITS
    if not 0 < bits <= 8 * (len(file) - scan):
        raise ValueError(f"{width} x {height} pixels do not fit into {len(file) - scan} bytes")
    return geometry, scan


def _read_scan(scan: bytes, settings: JpegFormat, geometry: Geometry) -> np.ndarray:
    """Coefficients of all MCUs, 0 where the scan ends too early."""
    interval = settings.restart_interval or geometry.mcus
    blocks = np.zeros((geometry.mcus, len(settings.block_components), 64), np.int64)
    at = 0
    for first in range(0, geometry.mcus, interval):
        last = min(first + interval, geometry.mcus)
        end = _next_marker(scan, at)
        blocks[first:last] = read_segment(scan[at:end], last - first, settings).blocks
        at = end + 2
    return blocks


def _next_marker(scan: bytes, at: int) -> int:
    """Offset of the next marker; the scan's length if there is none."""
    while True:
        at = scan.find(b"\xff", at)
        if at < 0 or at + 1 >= len(scan):
            return len(scan) if at < 0 else at
        if scan[at + 1]:
            return at
        at += 2


def read_segment(data: bytes, mcus: int, settings: JpegFormat) -> DecodedSegment:
    """Reads an entropy-coded segment, possibly damaged, as `mcus` MCUs.

    As in libjpeg, an undefined code counts as symbol 0, coefficients past index 63 are ignored, and
    zero bits are read past the end of the segment.

    Args:
      data: the bytes between two markers, with byte stuffing.
      mcus: MCUs to read.
      settings: of the encoder, for the tables and components.
    """
    tables = [(_lookup(dc), _lookup(ac)) for dc, ac in block_tables(settings)]
    components = settings.block_components
    bits = _Bits(data.replace(b"\xff\x00", b"\xff"))
    blocks = np.zeros((mcus, len(tables), 64), np.int64)
    predictors = [0] * (max(components) + 1)
    whole, faultless = 0, True
    for mcu in range(mcus):
        for index, (dc, ac) in enumerate(tables):
            component = components[index]
            block = blocks[mcu, index]
            faultless &= _read_block(bits, dc, ac, block)
            predictors[component] += int(block[0])
            block[0] = predictors[component]
        faultless &= bits.at <= bits.end
        whole += faultless
        if bits.at >= bits.end + 16:
            break  # the remaining coefficients are zeros, which the array already holds
    return DecodedSegment(blocks, whole, whole == mcus and bits.end - bits.at < 8)


class _Bits:
    """Reads bits of bytes; zeros past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data + bytes(8)
        self.at = 0
        self.end = 8 * len(data)

    def peek16(self) -> int:
        start = self.at >> 3
        window = int.from_bytes(self._data[start : start + 3], "big")
        return window >> 8 - (self.at & 7) & 0xFFFF

    def take(self, count: int) -> int:
        value = self.peek16() >> 16 - count
        self.at += count
        return value


def _read_block(bits: _Bits, dc: list[int], ac: list[int], block: np.ndarray) -> bool:
    """Reads one block, DC as a difference, into int64 [64]. Returns True if there was no fault."""
    size, faultless = _read_symbol(bits, dc)
    block[0] = _signed(bits.take(size), size)
    k = 1
    while k < 64 and bits.at < bits.end + 16:
        symbol, defined = _read_symbol(bits, ac)
        faultless &= defined
        if symbol == EOB:
            break
        k += symbol >> 4
        size = symbol & 15
        value = _signed(bits.take(size), size)
        if k < 64:
            block[k] = value
        faultless &= k < 64
        k += 1
    return faultless


def _read_symbol(bits: _Bits, lookup: list[int]) -> tuple[int, bool]:
    """(symbol, whether its code is defined)."""
    entry = lookup[bits.peek16()]
    bits.at += entry >> 8 or 16
    return entry & 0xFF, entry > 0


def _signed(value: int, size: int) -> int:
    """The value of additional bits (T.81 F.2.2.1, EXTEND)."""
    return value if size == 0 or value >> size - 1 else value - (1 << size) + 1


@functools.lru_cache(maxsize=16)
def _lookup(table: HuffmanTable) -> list[int]:
    """By the next 16 bits: 256 * (length of the code) + symbol; 0 for an undefined code."""
    entries = [0] * (1 << 16)
    for symbol, (code, bits) in table.codes.items():
        first, count = code << 16 - bits, 1 << 16 - bits
        entries[first : first + count] = [bits << 8 | symbol] * count
    return entries


# Writing


def _write_scan(blocks: np.ndarray, settings: JpegFormat) -> bytes:
    """The scan of all MCUs, int [mcus, blocks, 64], with its restart markers."""
    interval = settings.restart_interval or len(blocks)
    parts: list[bytes] = []
    for number, first in enumerate(range(0, len(blocks), interval)):
        if number:
            parts.append(bytes([0xFF, 0xD0 + (number - 1) % 8]))
        parts.append(_write_segment(blocks[first : first + interval], settings))
    return b"".join(parts)


def _write_segment(blocks: np.ndarray, settings: JpegFormat) -> bytes:
    tables = block_tables(settings)
    components = settings.block_components
    predictors = [0] * (max(components) + 1)
    bits: list[str] = []
    for mcu in blocks:
        for block, component, (dc, ac) in zip(mcu, components, tables, strict=True):
            _write_block(bits, block, predictors[component], _codes(dc), _codes(ac))
            predictors[component] = int(block[0])
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big")
    return data.replace(b"\xff", b"\xff\x00")


def _write_block(
    bits: list[str], block: np.ndarray, predictor: int, dc: dict[int, str], ac: dict[int, str]
) -> None:
    difference = int(block[0]) - predictor
    size = abs(difference).bit_length()
    bits += _code(dc, size), _magnitude(difference, size)
    k = 0
    for index in np.flatnonzero(block[1:]).tolist():
        zeros, k = index - k, index + 1
        bits += [ac[ZRL]] * (zeros // 16)
        value = int(block[k])
        size = abs(value).bit_length()
        bits += _code(ac, zeros % 16 << 4 | size), _magnitude(value, size)
    if k < 63:
        bits.append(ac[EOB])


def _code(codes: dict[int, str], symbol: int) -> str:
    if symbol not in codes:
        raise ValueError(
            f"symbol {symbol:#04x} has no Huffman code, because a coefficient is too large; "
            "expected coefficients that a baseline encoder makes"
        )
    return codes[symbol]


def _magnitude(value: int, size: int) -> str:
    """The additional bits of a value of this size (T.81 F.1.2.1.1): negative values minus 1."""
    return f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


@functools.lru_cache(maxsize=16)
def _codes(table: HuffmanTable) -> dict[int, str]:
    """symbol -> its code as a string of the characters 0 and 1."""
    return {symbol: f"{code:0{bits}b}" for symbol, (code, bits) in table.codes.items()}
