"""Damaged AVC streams are told apart from whole ones, shown as far as they go, and hang nothing."""

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


def judged(representation, data):
    return representation.validate(np.frombuffer(data, np.uint8).astype(np.uint16))


def units(stream):
    return [stream[nal.start : nal.end] for nal in nals(stream)]


def test_what_structure_rules_out(representation, stream):
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
        "own": stream.replace(sps, sps[:-1] + b"\x81"),
        "nal_ref_idc 2, expected 3": stream.replace(b"\0\0\1\x65", b"\0\0\1\x45", 1),
        "forbidden_zero_bit": stream.replace(b"\0\0\1\x65", b"\0\0\1\xe5", 1),
        "emulation prevention": stream + b"\0\0\1\x41\0\0\3\x7f\x80",
        "start code of 3 bytes before a frame": b"".join(
            [*nal[: 2 + 12], nal[2 + 12][1:], *nal[2 + 13 :]]
        ),
        "start code of 4 bytes within a frame": b"".join([*nal[:3], b"\0", *nal[3:]]),
    }
    for expected, data in cases.items():
        verdict = judged(representation, data)
        assert not verdict.valid, expected
        assert expected in verdict.error, (expected, verdict.error)
    assert judged(representation, stream).valid


def test_whole_frames_before_the_damage_are_counted(representation, stream):
    nal = units(stream)
    lost = b"".join(nal[: 2 + 12 * 3 + 4] + nal[2 + 12 * 3 + 5 :])
    verdict = judged(representation, lost)
    assert (verdict.valid, verdict.units, verdict.expected) == (False, 3, 6)


def test_the_decoder_judges_macroblocks(representation, stream):
    """A slice whose header is right and whose macroblock is not."""
    nal = units(stream)
    damaged = 0
    for at in range(2, 14):
        cut = nal[at][: len(nal[at]) - 3] + b"\x80"
        verdict = judged(representation, b"".join([*nal[:at], cut, *nal[at + 1 :]]))
        damaged += not verdict.valid
        assert verdict.valid or "decoder reports" in verdict.error or "byte" in verdict.error
    assert damaged >= 10


def test_tokens_that_are_no_bytes_are_named_and_passed_over(representation, stream):
    tokens = np.frombuffer(stream, np.uint8).astype(np.uint16)
    cut = len(tokens) // 2
    with_eos = np.insert(tokens, cut, representation.eos)
    verdict = representation.validate(with_eos)
    assert not verdict.valid and "EOS" in verdict.error
    with pytest.raises(ValueError, match="EOS"):
        representation.decode(with_eos)
    assert representation.salvage(with_eos).clean
    assert not representation.validate(tokens.astype(float)).valid


def test_an_empty_nal_unit_is_no_obstacle(representation, stream):
    """What a model may write at the very end: a start code and nothing behind it."""
    tokens = representation.from_bytes(stream + b"\0\0\1")
    assert tokens.astype(np.uint8).tobytes() == representation._strip(stream) + b"\0\0\1"
    assert "empty NAL unit" in representation.validate(tokens).error


def test_any_bytes_are_shown_or_refused_the_same_way_every_time(representation, stream):
    """Flips, cuts and noise: a verdict each, frames of one shape, twice the same."""
    rng = np.random.default_rng(0)
    shown = caught = 0
    data = np.frombuffer(stream, np.uint8).astype(np.uint16)
    for trial in range(120):
        tokens = data.copy()
        for _ in range(1 + trial % 3):
            tokens[rng.integers(40, tokens.size)] = rng.integers(256)
        if trial % 4 == 0:
            tokens = tokens[: rng.integers(50, tokens.size)]
        if trial % 10 == 0:
            tokens[40:] = rng.integers(0, 256, tokens.size - 40)
        caught += not representation.validate(tokens).valid
        try:
            decoded = representation.salvage(tokens)
        except ValueError:
            continue
        shown += 1
        assert decoded.frames.shape == (6, 48, 64, 3) and decoded.frames.dtype == np.uint8
        again = representation.salvage(tokens)
        assert np.array_equal(again.frames, decoded.frames) and again.report == decoded.report
    assert shown > 90
    assert caught > 70


def test_a_stated_size_takes_no_memory(representation, stream):
    """Parameter sets of 16384 x 16384 pixels in the stream: ours are used."""
    nal = units(stream)
    huge = make("avc", size=(4096, 4096), fps=4, frames=1).format.constants.sps_nal
    data = b"\0\0\0\1" + huge + b"".join(nal[1:])
    assert not judged(representation, data).valid
    tokens = np.frombuffer(data, np.uint8).astype(np.uint16)
    assert representation.decode(tokens).shape == (6, 48, 64, 3)
