"""Strict validation of JPEG streams: is each one exactly what an encoder could have written?

A stream is valid if its header is the representation's own, every MCU of the image is there with
defined Huffman codes and coefficients within the block, restart markers come in order, the bits
before each marker are padded with at most seven ones, FF is stuffed, and EOI ends the stream.

A scan is cut at its markers into entropy-coded segments (one segment if there are no restart
markers). `segments.run` processes the segments of many streams together. Only the first segment
that fails in a stream is examined bit by bit, to report the reason.

`JpegRepresentation.validate_batch` and `prompt` call this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.representations.jpeg.automaton import Automaton, automaton
from data_pipelines.representations.jpeg.format import Geometry, Header, JpegFormat
from data_pipelines.representations.jpeg.segments import (
    Failures,
    Fault,
    Segments,
    examine,
    run,
    whole_bytes,
)

# Streams are validated in chunks of about this many segments (enough to make numpy's calls cheap)
# or this many bytes (few enough to hold in memory).
_CHUNK_SEGMENTS = 1 << 15
_CHUNK_BYTES = 1 << 26
_RST0, _EOI = 0xD0, 0xD9
# Put after each scan, so that its last byte never pairs with the first of the next one.
_SENTINEL = np.array([0xFF, 0x01], np.uint8)


class StreamValidity(NamedTuple):
    """The result of validating one stream.

    Attributes:
      units: complete MCUs before the first damage; all of them if there is none.
      expected: MCUs of the image; 0 if its size cannot be read.
      byte: offset of the first damage in the stream; the stream's length if it ends too early; -1
        if it is valid.
      error: "" if valid, else one sentence.
    """

    units: int
    expected: int
    byte: int
    error: str


def validate_streams(
    streams: Sequence[bytes],
    settings: JpegFormat,
    header: Header,
    size: tuple[int, int] | None,
) -> list[StreamValidity]:
    """Validates streams; never raises because of their content.

    Args:
      streams: modelled streams (header, scan, EOI).
      settings: the encoder's.
      header: the header that each stream begins with.
      size: (width, height) of every image, or None to take each one's from its header.
    """
    results: list[StreamValidity | None] = [None] * len(streams)
    scans: list[_Scan] = []
    for index, stream in enumerate(streams):
        found = _read_header(stream, settings, header, size)
        if isinstance(found, StreamValidity):
            results[index] = found
        else:
            scans.append(_Scan(index, stream, len(header.data), found))
    for chunk in _chunks(scans, settings.restart_interval):
        for scan, result in zip(chunk, _validate_scans(chunk, settings), strict=True):
            results[scan.number] = result
    return [result for result in results if result is not None]


def offset_after(
    stream: bytes, settings: JpegFormat, header: Header, size: tuple[int, int] | None, mcus: int
) -> int:
    """Number of leading bytes of a stream that hold its header and its first `mcus` MCUs only.

    A restart marker right after the last of these MCUs is included. A byte that the next MCU shares
    is not.

    Raises ValueError if the stream is damaged before that offset.
    """
    geometry = _read_header(stream, settings, header, size)
    if isinstance(geometry, StreamValidity):
        raise ValueError(geometry.error)
    scan = _Scan(0, stream, len(header.data), geometry)
    if mcus == 0:
        return scan.start
    if mcus == geometry.mcus:
        return len(stream)
    cut = _cut([scan], settings.restart_interval)
    interval = settings.restart_interval or geometry.mcus
    segment, inside = divmod(mcus, interval)
    last = segment if inside else segment - 1
    if last >= len(cut.start) or not cut.markers.right[:last].all():
        raise ValueError(
            f"the stream ends before MCU {mcus - 1} does: markers are missing or wrong"
        )
    if not inside:
        if not cut.markers.right[last]:
            raise ValueError(f"no restart marker follows MCU {mcus - 1}")
        return scan.start + int(cut.markers.at[last]) + 2
    first = int(cut.segments.start[segment])
    data = cut.segments.data[first : first + int(cut.segments.length[segment])].tobytes()
    whole = whole_bytes(automaton(settings), data, inside)
    return scan.start + _raw_offset(cut, segment, whole)


class _Scan(NamedTuple):
    number: int  # of the stream
    stream: bytes
    start: int  # of the scan in it
    geometry: Geometry


def _read_header(
    stream: bytes, settings: JpegFormat, header: Header, size: tuple[int, int] | None
) -> Geometry | StreamValidity:
    """The geometry of the image, or the failed validation if the header is wrong."""
    stated = size or header.size(stream)
    if stated is not None and stream.startswith(header.at(*stated)):
        return settings.geometry(*stated)
    wanted = header.at(*(size or (1, 1)))
    # Where images have their own sizes, any size is accepted.
    free = range(0) if size else range(header.size_at, header.size_at + 4)
    at = len(stream)
    for offset, (found, expected) in enumerate(zip(stream, wanted, strict=False)):
        if found != expected and offset not in free:
            at, reason = offset, f"found {found:02X} in the header, expected {expected:02X}"
            break
    else:
        reason = "the stream ends inside the header"
        if len(stream) >= len(wanted):
            at, reason = header.size_at, "the header states a side of 0 pixels"
    mcus = settings.geometry(*size).mcus if size else 0
    return StreamValidity(0, mcus, at, f"byte {at}: {reason}")


def _chunks(scans: list[_Scan], interval: int) -> Iterator[list[_Scan]]:
    """The scans in groups that are validated together."""
    chunk: list[_Scan] = []
    segments = size = 0
    for scan in scans:
        chunk.append(scan)
        # At most the image's number of restart intervals; each segment ends in a 2-byte marker.
        segments += (
            min(-(-scan.geometry.mcus // interval), len(scan.stream) // 2) if interval else 1
        )
        size += len(scan.stream)
        if segments >= _CHUNK_SEGMENTS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, segments, size = [], 0, 0
    if chunk:
        yield chunk


def _validate_scans(scans: list[_Scan], settings: JpegFormat) -> list[StreamValidity]:
    """Cuts scans into segments, runs these, and collects the results by scan."""
    machine = automaton(settings)
    cut = _cut(scans, settings.restart_interval)
    failures = run(cut.segments, machine)
    wrong = np.flatnonzero((failures.byte >= 0) | ~cut.markers.right)
    scan_of, first = np.unique(cut.markers.scan[wrong], return_index=True)
    results = [StreamValidity(scan.geometry.mcus, scan.geometry.mcus, -1, "") for scan in scans]
    for index, segment in zip(scan_of.tolist(), wrong[first].tolist(), strict=True):
        results[index] = _explain(segment, scans[index], cut, failures, machine, settings)
    return results


class _Markers(NamedTuple):
    """The markers of some scans, in order; each ends a segment. All fields are [segments].

    Attributes:
      at: offset in the raw bytes.
      code: the marker's second byte; 01 is the sentinel.
      expected: the second byte that it should have.
      right: whether the two are equal and, for EOI, nothing follows.
      scan: index of the scan.
      number: index of the segment in its scan, from 0.
      last: whether that is the last segment of a complete scan.
    """

    at: np.ndarray
    code: np.ndarray
    expected: np.ndarray
    right: np.ndarray
    scan: np.ndarray
    number: np.ndarray
    last: np.ndarray

    def select(self, keep: np.ndarray) -> _Markers:
        return _Markers(*(column[keep] for column in self))


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Scans cut into segments, up to the first wrong marker in each.

    Attributes:
      raw: the bytes of the scans, a sentinel after each.
      scan_ends: offsets of the sentinels, [scans].
      markers: the markers that end the segments.
      start: offset in `raw` of the first byte of each segment, [segments].
      segments: the segments without byte stuffing.
    """

    raw: np.ndarray
    scan_ends: np.ndarray
    markers: _Markers
    start: np.ndarray
    segments: Segments


def _cut(scans: list[_Scan], interval: int) -> _Cut:
    parts: list[np.ndarray] = []
    for scan in scans:
        parts += [np.frombuffer(scan.stream, np.uint8)[scan.start :], _SENTINEL]
    raw = np.concatenate(parts)
    ends = np.cumsum([len(part) + len(_SENTINEL) for part in parts[::2]]) - len(_SENTINEL)
    starts = np.concatenate([[0], ends[:-1] + len(_SENTINEL)])
    mcus = np.array([scan.geometry.mcus for scan in scans])

    ff = np.flatnonzero(raw == 0xFF)
    is_stuffed = raw[ff + 1] == 0
    stuffing = ff[is_stuffed] + 1
    markers = _check_markers(raw, ff[~is_stuffed], starts, ends, mcus, interval)
    after_previous = np.concatenate([[0], markers.at[:-1] + 2])
    start = np.where(markers.number == 0, starts[markers.scan], after_previous)
    keep = _up_to_first_wrong(markers)
    start, markers = start[keep], markers.select(keep)

    is_data = np.ones(len(raw), bool)
    is_data[stuffing] = False
    data_start = start - np.searchsorted(stuffing, start)
    length = markers.at - np.searchsorted(stuffing, markers.at) - data_start
    in_last = mcus[markers.scan] - markers.number * interval
    in_segment = np.where(markers.last, in_last, interval)
    return _Cut(raw, ends, markers, start, Segments(raw[is_data], data_start, length, in_segment))


def _check_markers(
    raw: np.ndarray,
    at: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    mcus: np.ndarray,
    interval: int,
) -> _Markers:
    """Numbers the markers at these offsets and compares them with the expected ones."""
    scan = np.searchsorted(ends, at)
    number = np.arange(len(at)) - np.searchsorted(at, starts)[scan]
    segments = -(-mcus // interval) if interval else np.ones_like(mcus)
    last = number == segments[scan] - 1
    code = raw[at + 1].astype(np.int32)
    expected = np.where(last, _EOI, _RST0 + number % 8)
    right = (code == expected) & (~last | (at + 2 == ends[scan]))
    return _Markers(at, code, expected, right, scan, number, last)


def _up_to_first_wrong(markers: _Markers) -> np.ndarray:
    """Which markers to use, bool [segments]: in each scan, up to the first wrong or last one."""
    final = np.flatnonzero(~markers.right | markers.last)
    scan, first = np.unique(markers.scan[final], return_index=True)
    end = np.zeros(int(markers.scan[-1]) + 1, np.int64)
    end[scan] = markers.number[final[first]]  # each scan has one: its sentinel counts as wrong
    return markers.number <= end[markers.scan]


def _explain(
    segment: int,
    scan: _Scan,
    cut: _Cut,
    failures: Failures,
    machine: Automaton,
    settings: JpegFormat,
) -> StreamValidity:
    """The result for a scan whose first wrong segment is this one."""
    # From offsets in `raw` to offsets in the stream.
    shift = len(scan.stream) - int(cut.scan_ends[cut.markers.scan[segment]])
    first = int(cut.markers.number[segment]) * settings.restart_interval
    end = first + int(cut.segments.mcus[segment])
    marker_at = int(cut.markers.at[segment]) + shift

    def damage(left: int, at: int, reason: str) -> StreamValidity:
        return StreamValidity(end - left, scan.geometry.mcus, at, f"byte {at}: {reason}")

    failed_at = int(failures.byte[segment])
    if failed_at < 0:
        return damage(0, *_wrong_marker(segment, cut, marker_at, len(scan.stream), end))
    left, fault = int(failures.left[segment]), None
    if failed_at < cut.segments.length[segment]:
        byte = int(cut.segments.data[cut.segments.start[segment] + failed_at])
        _, left, fault = examine(machine, int(failures.state[segment]), left, byte)
    where = f"in MCU {end - left}" if left else f"after MCU {end - 1}"
    if fault is not None:
        at = shift + _raw_offset(cut, segment, failed_at)
        return damage(left, at, f"{_REASONS[fault]}, {where}")
    if left:
        found = _marker_name(segment, cut, marker_at, len(scan.stream))
        return damage(left, marker_at, f"{found} cuts MCU {end - left} short")
    at = shift + _raw_offset(cut, segment, failed_at + 1)
    return damage(0, at, f"bytes are left over {where}, before any marker")


_REASONS = {
    Fault.UNDEFINED_CODE: "an undefined Huffman code",
    Fault.PAST_END: "a coefficient past index 63",
    Fault.ZEROS_BEFORE_EOB: "a run of sixteen zeros right before the end of its block",
    Fault.PADDING: "a padding bit is 0, expected 1",
}


def _raw_offset(cut: _Cut, segment: int, byte: int) -> int:
    """Offset in `raw` of a byte of a segment; the segment's end if it has no such byte."""
    start, end = int(cut.start[segment]), int(cut.markers.at[segment])
    raw = cut.raw[start:end]
    stuffed = np.concatenate([[False], (raw[:-1] == 0xFF) & (raw[1:] == 0)])[: len(raw)]
    offsets = np.flatnonzero(~stuffed)
    return start + int(offsets[byte]) if byte < len(offsets) else end


def _marker_name(segment: int, cut: _Cut, at: int, end: int) -> str:
    if at == end:
        return "the end of the stream"
    if at + 1 == end:
        return "an FF that ends the stream"
    return f"marker FF{int(cut.markers.code[segment]):02X}"


def _wrong_marker(segment: int, cut: _Cut, at: int, end: int, done: int) -> tuple[int, str]:
    """(offset in the stream, reason), for a segment without a fault that a wrong marker ends."""
    found, wanted = int(cut.markers.code[segment]), int(cut.markers.expected[segment])
    if found == wanted == _EOI and at + 2 < end:
        return at + 2, f"{end - at - 2} bytes are left over after EOI"
    name = _marker_name(segment, cut, at, end)
    return at, f"found {name} after MCU {done - 1}, expected marker FF{wanted:02X}"
