"""Huffman tables of a JPEG file (ITU-T T.81, Annex C and B.2.4.2).

libjpeg-turbo uses the typical tables of T.81 Annex K.3. They are read from the header that it
writes, so no table is copied here. The automaton and the coefficient reader and writer use them.
"""

from __future__ import annotations

import dataclasses
import functools

from data_pipelines.representations.jpeg.format import DHT, JpegFormat, marker_segments

DC, AC = 0, 1
EOB = 0x00  # end of block: only zeros follow
ZRL = 0xF0  # a run of sixteen zeros


@dataclasses.dataclass(frozen=True)
class HuffmanTable:
    """Canonical prefix code.

    Attributes:
      counts: number of codes of 1, 2, ... 16 bits.
      symbols: in the order of their codes. DC: the category (bits of the difference). AC:
        16 * (zeros before the coefficient) + (bits of the coefficient), or `EOB`, `ZRL`.
    """

    counts: tuple[int, ...]
    symbols: tuple[int, ...]

    @functools.cached_property
    def codes(self) -> dict[int, tuple[int, int]]:
        """symbol -> (code, its number of bits); T.81 C.2."""
        codes: dict[int, tuple[int, int]] = {}
        symbols, code = iter(self.symbols), 0
        for bits, count in enumerate(self.counts, start=1):
            for _ in range(count):
                codes[next(symbols)] = (code, bits)
                code += 1
            code <<= 1
        return codes


def read_tables(header: bytes) -> dict[tuple[int, int], HuffmanTable]:
    """(DC or AC, identifier) -> table, of all DHT marker segments in a header that ends with SOS.

    Raises ValueError for a header or a table that is cut short.
    """
    tables = {}
    for segment in marker_segments(header):
        if segment.marker != DHT:
            continue
        at = segment.start + 4
        while at < segment.end:
            counts = tuple(header[at + 1 : at + 17])
            symbols = tuple(header[at + 17 : at + 17 + sum(counts)])
            tables[header[at] >> 4, header[at] & 15] = HuffmanTable(counts, symbols)
            at += 17 + sum(counts)
        if at != segment.end:
            raise ValueError(f"byte {segment.start}: a Huffman table is longer than its segment")
    return tables


@functools.lru_cache(maxsize=64)
def block_tables(settings: JpegFormat) -> tuple[tuple[HuffmanTable, HuffmanTable], ...]:
    """(DC table, AC table) of each block of an MCU, in the order of the scan."""
    tables = read_tables(settings.header().data)
    # libjpeg gives luminance tables 0 and both chrominances tables 1.
    identifiers = [min(component, 1) for component in settings.block_components]
    return tuple((tables[DC, i], tables[AC, i]) for i in identifiers)
