"""H.264 streams <-> letters of the alphabet of code words (see `alphabet`), for any bytes.

Reading. NAL units are taken in order. The slices before one decide which header it must have: its
number gives the picture and the place in it, and the first slice of a picture may be of three
kinds. A slice with that header is one word, followed by the words of its macroblocks
(`walk`), or by its data as bytes if those have no words. All else is single bytes.

Writing. The word of a slice writes its header, where the number of such words before it decides all
but the kind of a picture: `next` and `row` where a picture begins are P; a stream begins with IDR.
Words of macroblocks write their bits. The first that has no code where it stands ends the slice,
and what follows up to the next slice is ignored. A slice ends with a stop bit, zeros, and emulation
prevention. Bytes that do not follow the word of a slice are written as they are. So any letters,
in any order, give some bytes, and what they give has its slices in order.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.representations.avc import macroblocks
from data_pipelines.representations.avc.bitstream import (
    IDR,
    SLICE,
    I,
    P,
    SliceHeader,
    SyntaxFault,
    check_bytes,
    slice_header,
    unescaped,
)
from data_pipelines.representations.avc.codewords import alphabet as words
from data_pipelines.representations.avc.codewords import walk
from data_pipelines.representations.avc.codewords.alphabet import Alphabet
from data_pipelines.representations.avc.encoder import MAX_REFERENCES, REF_IDC, AvcFormat
from data_pipelines.representations.avc.macroblocks import Slice
from data_pipelines.representations.codewords import compiled
from data_pipelines.representations.codewords.alphabet import NUM_BYTES

_START = b"\0\0\1"
_ESCAPE = re.compile(rb"\0\0(?=[\0-\3])")
_KINDS = (words.P, words.I, words.IDR)  # of a picture, the most frequent first


class Opening(NamedTuple):
    """What stands before the macroblocks of a slice.

    Attributes:
      start: parameter sets and start code.
      value, bits: of the NAL unit's first byte and the slice header.
      shape: what they determine about the macroblocks.
    """

    start: bytes
    value: int
    bits: int
    shape: Slice


class _Place(NamedTuple):
    """The place of a slice in a stream.

    Attributes:
      slice: in its picture.
      number: pictures since the last IDR picture; of the one before, if the picture begins.
      idrs: IDR pictures before this one.
      kind: the word of its picture; where it begins, of the one before.
      pictures: before it in the stream.
    """

    slice: int = 0
    number: int = 0
    idrs: int = 0
    kind: int = -1
    pictures: int = 0

    def of(self, kind: int) -> _Place:
        """The same where a picture of a kind begins."""
        idr = kind == words.IDR
        return self._replace(number=0 if idr else self.number + 1, kind=kind)

    def after(self, slices: int) -> _Place:
        """The place of the next slice, for so many slices in a picture."""
        if self.slice + 1 < slices:
            return self._replace(slice=self.slice + 1)
        idrs = self.idrs + (self.kind == words.IDR)
        return self._replace(slice=0, idrs=idrs, pictures=self.pictures + 1)


class _Found(NamedTuple):
    """A slice of a stream.

    Attributes:
      word: of the slice.
      data: of the NAL unit, without emulation prevention bytes.
      bits: of its header.
      shape: of the slice.
    """

    word: int
    data: bytes
    bits: int
    shape: Slice


@dataclasses.dataclass(frozen=True)
class Streams:
    """Reads and writes streams of fixed settings.

    Attributes:
      settings: of the encoder.
      headers: whether parameter sets stand before every IDR picture.
      places: see `Alphabet`.
    """

    settings: AvcFormat
    headers: bool
    places: bool = False

    @property
    def alphabet(self) -> Alphabet:
        """The letters."""
        return words.alphabet(self.places)

    @property
    def has_meaning(self) -> np.ndarray:
        """Which letters stand for bytes in these streams, bool [letters]: all."""
        return np.ones(len(self.alphabet), bool)

    # Reading

    def read(self, stream: bytes) -> np.ndarray:
        """Any bytes -> letters, uint16 [n]; `write` gives the same bytes back."""
        items = self._items(stream)
        found = self._words([item for item in items if isinstance(item, _Found)])
        parts: list[np.ndarray] = []
        in_bytes = False  # whether the last part is a slice in bytes
        for item in items:
            if isinstance(item, bytes):
                parts += [np.array([words.END], np.uint16)] if in_bytes else []
                parts.append(np.frombuffer(item, np.uint8).astype(np.uint16))
                in_bytes = False
                continue
            own = next(found)
            in_bytes = own is None
            parts += [
                np.array([item.word], np.uint16),
                _data_bytes(item) if own is None else own,
            ]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16)

    def _items(self, stream: bytes) -> list[_Found | bytes]:
        """The slices of a stream with the headers that they must have; other bytes between them."""
        items: list[_Found | bytes] = []
        place, at, raw = _Place(), 0, 0
        while at < len(stream):
            found = self._slice_at(stream, at, place)
            if found is None:
                code = stream.find(_START, at)
                at = len(stream) if code < 0 else _unit_end(stream, code + 3)
                continue
            if raw < at:
                items.append(stream[raw:at])
            item, place, at = found
            items.append(item)
            raw = at
        if raw < len(stream):
            items.append(stream[raw:])
        return items

    def _slice_at(self, stream: bytes, at: int, place: _Place) -> tuple[_Found, _Place, int] | None:
        """The slice that begins at a byte, the place after it, and where it ends."""
        if place.slice:
            kinds: tuple[int, ...] = (place.kind,)
        else:
            kinds = _KINDS if place.idrs else (words.IDR,)
        data, payload, end = b"", -1, -1
        for kind in kinds:
            here = place if place.slice else place.of(kind)
            opening = self.opening(here)
            if not stream.startswith(opening.start, at):
                continue
            if payload != at + len(opening.start):
                payload = at + len(opening.start)
                end = _unit_end(stream, payload)
                data = _checked(stream[payload:end])
            size = -(-opening.bits // 8)
            value = int.from_bytes(data[:size].ljust(size, b"\0"), "big")
            if 8 * len(data) > opening.bits and value >> 8 * size - opening.bits == opening.value:
                word = self._word(here)
                found = _Found(word, data, opening.bits, opening.shape)
                return found, here.after(self.settings.slices), end
        return None

    def _word(self, place: _Place) -> int:
        if place.slice == 0:
            return self._picture(place)
        first = place.slice * self.settings.slice_mbs
        return words.NEXT if first % self._columns else words.ROW

    def _picture(self, place: _Place) -> int:
        """The word of a picture that begins at a place."""
        if not self.places:
            return place.kind
        first = walk.tables().first[words.PICTURE_PLACE + place.pictures % words.PICTURES]
        return int(first) + place.kind - words.IDR

    def opening(self, place: _Place) -> Opening:
        """What stands before the macroblocks of the slice at a place."""
        counts = 1 << self.settings.constants.sps.frame_num_bits
        # Places with the same opening.
        number = place.number
        if number >= MAX_REFERENCES:
            number = MAX_REFERENCES + (number - MAX_REFERENCES) % counts
        idr = place.kind == words.IDR
        return _opening(
            self.settings,
            self.headers,
            place.slice,
            place.kind,
            number,
            place.idrs % 2 if idr else 0,
        )

    def _words(self, slices: Sequence[_Found]) -> Any:
        """Of each slice its macroblocks' letters, uint16 [n]; None where they have no words."""
        if not slices:
            return iter(())
        ends = np.cumsum([len(each.data) for each in slices]).tolist()
        begins: list[int] = []
        stops: list[int] = []
        for end, each in zip(ends, slices, strict=True):
            begins.append(8 * (end - len(each.data)) + each.bits)
            stops.append(8 * end - (each.data[-1] & -each.data[-1]).bit_length())
        given = b"".join([*(each.data for each in slices), walk.PADDING])
        results, result_ends, valid = self._walk(
            given, 8 * len(given), begins, stops, [], [each.shape for each in slices]
        )
        letters = np.array(results, np.uint16)
        own = np.split(letters, result_ends[:-1])
        return (each if right else None for each, right in zip(own, valid, strict=True))

    def _walk(
        self,
        given: Any,
        most: int,
        begins: list[int],
        ends: list[int],
        headers: list[int],
        shapes: list[Slice],
    ) -> tuple[Any, list[int], list[bool]]:
        """Runs `walk.walk`: (results, where those of each slice end, whether it is valid).

        most: results at most.
        """
        largest = max(shape.mbs for shape in shapes)
        columns: list[Any] = [
            begins,
            ends,
            headers,
            [shape.first for shape in shapes],
            [shape.mbs for shape in shapes],
            [shape.num_ref_idx for shape in shapes],
        ]
        scratch: list[Any] = [[0] * (24 * largest), [0] * (16 * largest), [0] * 5]
        found: list[Any] = [[0] * len(shapes), [False] * len(shapes)]
        out: Any = [0] * most
        if compiled.has_numba():
            given = np.frombuffer(given, np.uint8) if isinstance(given, bytes) else given
            given, out = np.asarray(given).astype(np.int64), np.zeros(most, np.int64)
            columns = [np.array(column, np.int64) for column in columns]
            scratch, found = list(map(np.array, scratch)), list(map(np.array, found))
        elif not isinstance(given, bytes):
            given = given.tolist()
        walk.walk(
            walk.tables(),
            given,
            out,
            *columns,
            self._columns,
            shapes[0].mvd_bits,
            int(bool(headers)),
            int(self.places),
            *scratch,
            *found,
        )
        result_ends, valid = (np.asarray(each).tolist() for each in found)
        return out[: result_ends[-1]], result_ends, valid

    @property
    def _columns(self) -> int:
        return math.ceil(self.settings.width / 16)

    # Writing

    def write(self, letters: np.ndarray) -> bytes:
        """Letters, integer [n] in range(len(alphabet)) -> bytes."""
        letters = np.asarray(letters, np.int64)
        if self.places:  # those of pictures follow from the words before them
            plain, places = words.without_places()
            letters = np.where(
                places[letters] >= words.PICTURE_PLACE, plain[letters], letters
            ).astype(np.int64)
        marks = np.flatnonzero((letters >= words.IDR) & (letters <= words.END)).tolist()
        is_byte = letters < NUM_BYTES
        cuts = [*marks, len(letters)]
        parts: list[Any] = [_raw(letters[: cuts[0]])]  # bytes, or the index of a slice in words
        openings: list[Opening] = []
        begins: list[int] = []
        ends: list[int] = []
        place = _Place()
        for begin, end in zip(marks, cuts[1:], strict=True):
            word = int(letters[begin])
            body = letters[begin + 1 : end]
            if word == words.END:
                parts.append(_raw(body))
                continue
            if place.slice == 0:
                place = place.of(_kind(word, place))
            opening = self.opening(place)
            place = place.after(self.settings.slices)
            parts.append(opening.start)
            bytes_at = np.flatnonzero(is_byte[begin + 1 : end])
            if len(bytes_at) and bytes_at[0] == 0:
                parts.append(_escaped(_with_data(opening, _raw(body))))
                continue
            stop = begin + 1 + int(bytes_at[0]) if len(bytes_at) else end
            parts.append(len(openings))
            openings.append(opening)
            begins.append(begin + 1)
            ends.append(stop)
            if stop < end:
                parts.append(_raw(letters[stop:end]))
        units = self._units(letters, begins, ends, openings)
        return b"".join(
            [_escaped(units[part]) if isinstance(part, int) else part for part in parts]
        )

    def _units(
        self, letters: np.ndarray, begins: list[int], ends: list[int], openings: list[Opening]
    ) -> list[bytes]:
        """The NAL units of slices in words, without emulation prevention."""
        if not openings:
            return []
        headers = []
        for opening in openings:
            high = max(0, opening.bits - 32)
            low = opening.bits - high
            headers += [opening.value >> low << 6 | high, opening.value % (1 << low) << 6 | low]
        # A letter has at most one code, and mb_skip_run and mb_qp_delta have some without a letter.
        most = 3 * len(letters) + 4 * len(openings)
        shapes = [opening.shape for opening in openings]
        results, result_ends, _ = self._walk(letters, most, begins, ends, headers, shapes)
        codes = np.array(results, np.int64)
        lengths = codes & 63
        total = np.cumsum(lengths)
        index = np.arange(total[-1]) - np.repeat(total - lengths, lengths)
        shift = np.repeat(lengths, lengths) - 1 - index
        data = np.packbits(np.repeat(codes >> 6, lengths) >> shift & 1).tobytes()
        bounds = [0, *(total[np.array(result_ends) - 1] >> 3).tolist()]
        return [data[a:b] for a, b in itertools.pairwise(bounds)]


def _kind(word: int, place: _Place) -> int:
    """The kind of a picture that begins with a word."""
    if not place.idrs:
        return words.IDR
    return word if word <= words.P else words.P


@functools.lru_cache(maxsize=1 << 16)
def _opening(
    settings: AvcFormat, headers: bool, index: int, kind: int, number: int, idr_id: int
) -> Opening:
    """See `Streams.opening`."""
    constants = settings.constants
    idr = kind == words.IDR
    nal_type = IDR if idr else SLICE
    slice_type = P if kind == words.P else I
    header = SliceHeader(
        nal_type=nal_type,
        ref_idc=REF_IDC[nal_type],
        first_mb=index * settings.slice_mbs,
        slice_type=slice_type,
        frame_num=number % (1 << constants.sps.frame_num_bits),
        idr_pic_id=idr_id if idr else -1,
        num_ref_idx=min(number, MAX_REFERENCES) if slice_type == P else 0,
        qp=constants.qps[slice_type],
        deblocking=constants.deblocking[slice_type],
    )
    start = b"\0" + _START if index == 0 and not idr else _START
    if index == 0 and idr and headers:
        start = constants.prefix + start
    columns, rows = math.ceil(settings.width / 16), math.ceil(settings.height / 16)
    shape = Slice(
        columns,
        header.first_mb,
        min(settings.slice_mbs or settings.mbs, settings.mbs - header.first_mb),
        slice_type,
        header.num_ref_idx,
        header.qp,
        macroblocks.mvd_bits(columns, rows),
    )
    return Opening(start, *slice_header(header, constants.sps, constants.pps), shape)


def _unit_end(stream: bytes, payload: int) -> int:
    """Where the NAL unit ends that begins at a byte: at the next start code."""
    code = stream.find(_START, payload)
    if code < 0:
        return len(stream)
    return code - 1 if code > payload and stream[code - 1] == 0 else code


def _checked(unit: bytes) -> bytes:
    """A NAL unit without emulation prevention bytes; empty if `_escaped` would not restore it."""
    try:
        check_bytes(unit)
    except SyntaxFault:
        return b""
    return unescaped(unit)


def _escaped(data: bytes) -> bytes:
    """Emulation prevention put in (7.4.1)."""
    return _ESCAPE.sub(b"\0\0\3", data)


def _raw(letters: np.ndarray) -> bytes:
    """The letters that are bytes, as bytes."""
    return letters[letters < NUM_BYTES].astype(np.uint8).tobytes()


def _data_bytes(found: _Found) -> np.ndarray:
    """The bits after the header of a slice as bytes, the last one filled up with zeros."""
    left = 8 * len(found.data) - found.bits
    size = -(-left // 8)
    value = int.from_bytes(found.data, "big") % (1 << left) << 8 * size - left
    return np.frombuffer(value.to_bytes(size, "big"), np.uint8).astype(np.uint16)


def _with_data(opening: Opening, data: bytes) -> bytes:
    """The NAL unit of a slice in bytes: the inverse of `_data_bytes`."""
    bits = opening.bits + 8 * len(data)
    value = opening.value << 8 * len(data) | int.from_bytes(data, "big")
    return (value >> bits % 8).to_bytes(bits // 8, "big")
