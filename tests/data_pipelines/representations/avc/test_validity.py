"""Damaged AVC streams are found invalid, and are decoded as far as possible."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.avc.bitstream import nals
from tests.data_pipelines.representations.avc.clips import moving


@pytest.fixture(scope="module")
def representation():
    return make("avc", size=(64, 48), fps=4, frames=6)


@pytest.fixture(scope="module")
def stream(representation):
    return representation.encode(moving(6, 64, 48)).astype("u1").tobytes()


def validate(representation, data):
    return representation.validate(np.frombuffer(data, np.uint8).astype(np.uint16))


def units(stream):
    return [stream[nal.start : nal.end] for nal in nals(stream)]


def test_damaged_structure_is_reported(representation, stream):
    nal = units(stream)
    sps, pps, first, second = nal[:4]
    body = b"".join(nal[2:])
    cases = {
        "no start code": b"",
        "expected slices": stream + b"\0\0\1\x06\x01\x80",
        "that no picture follows": sps + pps,
        "without its parameter sets": body,
        "out of order": pps + sps + body,
        "no start code where": b"\x07" + stream,
        "ends in 00": stream + b"\0",
        "begins at macroblock 1, expected 0": sps + pps + b"".join(nal[3:]),
        "begins at macroblock 0, expected 1": sps + pps + first + first,
        "begins at macroblock 2, expected 1": sps + pps + first + b"".join(nal[4:]),
        "ends within a frame, before macroblock 2": sps + pps + first + second,
        "ends after 5 frames": b"".join(nal[: 2 + 12 * 5]),
        "frame after the 6": stream + b"".join(nal[2 + 12 * 5 :]),
        "frame_num 2, expected 1": b"".join(nal[: 2 + 12] + nal[2 + 12 * 2 :]),
        "of other settings": stream.replace(sps, sps[:-1] + b"\x81"),
        "nal_ref_idc 2, expected 3": stream.replace(b"\0\0\1\x65", b"\0\0\1\x45", 1),
        "forbidden_zero_bit": stream.replace(b"\0\0\1\x65", b"\0\0\1\xe5", 1),
        "emulation prevention": stream + b"\0\0\1\x41\0\0\3\x7f\x80",
        "start code of 3 bytes before a frame": b"".join(
            [*nal[: 2 + 12], nal[2 + 12][1:], *nal[2 + 13 :]]
        ),
        "start code of 4 bytes within a frame": b"".join([*nal[:3], b"\0", *nal[3:]]),
    }
    for expected, data in cases.items():
        result = validate(representation, data)
        assert not result.valid, expected
        assert expected in result.error, (expected, result.error)
    assert validate(representation, stream).valid


def test_whole_frames_before_the_damage_are_counted(representation, stream):
    nal = units(stream)
    lost = b"".join(nal[: 2 + 12 * 3 + 4] + nal[2 + 12 * 3 + 5 :])
    result = validate(representation, lost)
    assert (result.valid, result.units, result.expected) == (False, 3, 6)


def test_the_decoder_validates_macroblocks(representation, stream):
    """A slice with a valid header and a damaged macroblock."""
    nal = units(stream)
    damaged = 0
    for at in range(2, 14):
        cut = nal[at][: len(nal[at]) - 3] + b"\x80"
        result = validate(representation, b"".join([*nal[:at], cut, *nal[at + 1 :]]))
        damaged += not result.valid
        assert result.valid or "decoder reports" in result.error or "byte" in result.error
    assert damaged >= 10


def test_tokens_without_bytes_are_reported_and_ignored(representation, stream):
    tokens = np.frombuffer(stream, np.uint8).astype(np.uint16)
    cut = len(tokens) // 2
    with_eos = np.insert(tokens, cut, representation.eos)
    result = representation.validate(with_eos)
    assert not result.valid and "EOS" in result.error
    with pytest.raises(ValueError, match="EOS"):
        representation.decode(with_eos)
    assert representation.salvage(with_eos).clean
    assert not representation.validate(tokens.astype(float)).valid


def test_an_empty_nal_unit_is_invalid(representation, stream):
    """A model may end a document with a start code."""
    tokens = representation.from_bytes(stream + b"\0\0\1")
    assert tokens.astype(np.uint8).tobytes() == stream + b"\0\0\1"
    assert "empty NAL unit" in representation.validate(tokens).error


def test_decoding_of_damaged_streams_is_deterministic(representation, stream):
    """Bit flips, truncation and noise: frames of one shape or ValueError, twice the same."""
    rng = np.random.default_rng(0)
    decodable = invalid = 0
    data = np.frombuffer(stream, np.uint8).astype(np.uint16)
    for trial in range(120):
        tokens = data.copy()
        for _ in range(1 + trial % 3):
            tokens[rng.integers(40, tokens.size)] = rng.integers(256)
        if trial % 4 == 0:
            tokens = tokens[: rng.integers(50, tokens.size)]
        if trial % 10 == 0:
            tokens[40:] = rng.integers(0, 256, tokens.size - 40)
        invalid += not representation.validate(tokens).valid
        try:
            decoded = representation.salvage(tokens)
        except ValueError:
            continue
        decodable += 1
        assert decoded.frames.shape == (6, 48, 64, 3) and decoded.frames.dtype == np.uint8
        again = representation.salvage(tokens)
        assert np.array_equal(again.frames, decoded.frames) and again.report == decoded.report
    assert decodable > 90
    assert invalid > 70


def test_the_size_in_a_stream_is_ignored(representation, stream):
    """An SPS of 1024 x 1024 pixels in the stream: the decoder uses the representation's own."""
    nal = units(stream)
    huge = make("avc", size=(1024, 1024), fps=4, frames=1, slice_mbs=0).format.constants.sps_nal
    data = b"\0\0\0\1" + huge + b"".join(nal[1:])
    assert not validate(representation, data).valid
    tokens = np.frombuffer(data, np.uint8).astype(np.uint16)
    assert representation.decode(tokens).shape == (6, 48, 64, 3)
