"""Macroblocks are read to the last bit: against FFmpeg, by writing them back, fault by fault."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines import sources
from data_pipelines.representations import make
from data_pipelines.representations.avc import macroblock_batch, macroblocks, validity
from data_pipelines.representations.avc.bitstream import I, P
from data_pipelines.representations.avc.macroblocks import Fault, Slice
from tests.data_pipelines.representations.avc import writer
from tests.data_pipelines.representations.avc.clips import moving
from tests.data_pipelines.representations.avc.mutations import (
    complaints,
    damaged,
    noise,
    walked,
    with_slice,
)
from tests.data_pipelines.representations.machines import names

SETTINGS = [
    dict(size=(32, 32), frames=4, slice_mbs=0, strip="headers"),
    dict(size=(48, 32), frames=5, slice_mbs=1),
    dict(size=(64, 48), frames=5, slice_mbs=5, strip="headers", qp=12),
    dict(size=(64, 48), frames=3, slice_mbs=0, strip="headers", qp=1),
    dict(size=(64, 48), frames=5, slice_mbs=7, strip="headers", qp=30),
]


@pytest.fixture(scope="module", params=SETTINGS, ids=names)
def representation(request):
    return make("avc", **request.param)


def clips(representation):
    frames, (width, height) = representation.frames, representation.size
    whole = [noise(representation, seed) for seed in range(4)]
    for cut in (0, 2):
        tokens = representation.encode(moving(frames, width, height, cut=cut))
        whole.append(representation.tokenizer.decode(tokens))
    return whole


def pieces(representation, streams):
    """The arguments of `macroblocks.parse` of every slice."""
    walks = [walked(representation, stream) for stream in streams]
    assert not any(walk.error for walk in walks)
    return [(s.data, s.start, s.shape) for walk in walks for s in walk.slices]


def errors(representation, streams):
    walks = validity.validate_streams(
        streams,
        representation.format,
        headers=representation.strip == "none",
        min_frames=representation.min_clip_frames,
        max_frames=representation.frames,
    )
    return [walk.error for walk in walks]


def is_right(piece):
    try:
        macroblocks.parse(*piece)
    except Fault:
        return False
    return True


def test_what_x264_writes_is_right_and_is_written_back_bit_for_bit(representation):
    streams = clips(representation)
    assert errors(representation, streams) == [""] * len(streams)
    for data, start, shape in pieces(representation, streams):
        bits = "".join(f"{byte:08b}" for byte in data)[start:].rstrip("0")
        assert writer.slice_data(macroblocks.parse(data, start, shape), shape) == bits


def test_moving_digits_are_right():
    representation = make("avc", size=(48, 48), fps=4, frames=8, slice_mbs=0, strip="headers")
    source = sources.open_source("moving_digits:20", "video")
    documents = [
        representation.encode(media)
        for clip in range(20)
        for media in representation.open(source.read(clip))
    ]
    assert len(documents) == 20 and all(
        each.valid for each in representation.validate_batch(documents)
    )


def test_what_the_decoder_complains_of_is_refused(representation):
    _against_the_decoder(representation, 80)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_the_decoder_complains_of_is_refused_in_a_hundred_thousand(representation):
    _against_the_decoder(representation, 100_000 // len(SETTINGS))


# FFmpeg takes these: what no x264 with these settings writes, and coefficients past the end of a
# block of 15, which it stores where nothing is read. Of 100,000 streams it took two with bits that
# are no code of run_before.
_OURS_ALONE = (
    "run_before is no codeword",
    "total_zeros leaves the block",
    "level_prefix is more than 15",
    "mvd_l0 is no whole pixel",
    "mb_qp_delta leaves the constant QP",
    "mb_skip_run is out of range",
    "mb_type P_",
    "mb_type I_4x4 in a P slice",
    "needs samples outside the slice",
    "is out of range",
)


def _against_the_decoder(representation, count):
    rng = np.random.default_rng(0)
    streams = clips(representation)
    assert not any(complaints(representation, stream) for stream in streams)
    mutated = [
        damaged(representation, streams[rng.integers(len(streams))], rng) for _ in range(count)
    ]
    ours = errors(representation, mutated)
    theirs = [complaints(representation, stream) for stream in mutated]
    missed = [found for error, found in zip(ours, theirs, strict=True) if found and not error]
    alone = [error for error, found in zip(ours, theirs, strict=True) if error and not found]
    assert not missed
    assert [error for error in alone if not any(reason in error for reason in _OURS_ALONE)] == []
    assert len(alone) < count / 20
    assert count / 2 < sum(map(bool, theirs)) < count


def test_many_at_a_time_are_judged_as_one_by_one(representation):
    rng = np.random.default_rng(1)
    slices = pieces(representation, clips(representation))
    mutated = []
    while len(mutated) < 400:
        data, start, shape = slices[rng.integers(len(slices))]
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        bits[rng.integers(start, len(bits), rng.integers(1, 4))] ^= 1
        if rng.random() < 0.2:
            bits = bits[: rng.integers(start + 8, len(bits) + 8)]
        data = np.packbits(bits).tobytes().rstrip(b"\0")
        if 8 * len(data) > start + 8:
            mutated.append((data, start, shape))
    found = macroblock_batch.are_valid(macroblock_batch.make_batch(slices + mutated))
    expected = [True] * len(slices) + [is_right(piece) for piece in mutated]
    assert found.tolist() == expected
    assert 0 < sum(expected[len(slices) :]) < 300


ue, se = writer.ue, writer.se
DC_16X16 = ue(3)  # Intra_16x16 of mean values, no AC
DC_AC = ue(15)  # the same with AC
ONE, TWO = "0" + "1", "001"  # coeff_token of one trailing one, of two
# By slice type: what comes before the fault, the fault, its reason.
FAULTS = [
    (I, "", ue(26), "mb_type is out of range"),
    (I, "", "0" * 17 + "1", "mb_type is out of range"),
    (I, "", ue(25), "I_PCM"),
    (I, "", ue(1), "Intra_16x16 prediction mode needs samples"),
    (I, ue(0), "0000", "Intra_4x4 prediction mode needs samples"),
    (I, ue(0) + "1" * 2, "0001", "Intra_4x4 prediction mode needs samples"),  # horizontal is there
    (I, DC_16X16, ue(1), "intra_chroma_pred_mode needs samples"),
    (I, DC_16X16, ue(4), "intra_chroma_pred_mode is out of range"),
    (I, ue(0) + "1" * 16 + ue(0), ue(48), "coded_block_pattern is out of range"),
    (I, DC_16X16 + ue(0), se(1), "mb_qp_delta leaves"),
    (I, DC_16X16 + ue(0), se(27), "mb_qp_delta is out of range"),
    (I, DC_16X16 + ue(0) + se(0), "0" * 16, "coeff_token is no codeword"),
    (I, DC_AC + ue(0) + se(0) + "1", "0000000000000100", "coeff_token has more coefficients"),
    (I, DC_16X16 + ue(0) + se(0) + "000101", "0" * 16 + "1", "level_prefix"),
    (I, DC_16X16 + ue(0) + se(0) + ONE + "0", "0" * 9, "total_zeros is no codeword"),
    (I, DC_AC + ue(0) + se(0) + "1" + ONE + "0", "000000001", "total_zeros leaves the block"),
    (I, DC_16X16 + ue(0) + se(0) + TWO + "00" + "0011", "00001", "run_before is more"),
    (I, DC_16X16 + ue(0) + se(0) + TWO + "00" + "0011", "0" * 11, "run_before is no codeword"),
    (I, DC_16X16 + ue(0) + se(0) + "1", "1", "bits follow"),
    (P, "", ue(2), "mb_skip_run is out of range"),
    (P, ue(1), "1", "bits follow"),
    (P, ue(0), ue(1), "P_L0_L0_16x8"),
    (P, ue(0), ue(3), "P_8x8"),
    (P, ue(0), ue(5), "I_4x4 in a P slice"),
    (P, ue(0), ue(31), "mb_type is out of range"),
    (P, ue(0) + ue(0), ue(3), "ref_idx_l0 is out of range"),
    (P, ue(0) + ue(0) + ue(2), se(1), "no whole pixel"),
    (P, ue(0) + ue(0) + ue(2) + se(4), se(-2), "no whole pixel"),
    (P, ue(0) + ue(0) + ue(2), se(1 << 12), "mvd_l0 is out of range"),
    (P, ue(0) + ue(0) + ue(2) + se(0) + se(0), ue(48), "coded_block_pattern is out of range"),
]


def one_macroblock(slice_type, bits, start=11):
    """A slice of one macroblock, after a header of some bits."""
    bits = "1" * start + bits
    data = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return data.rstrip(b"\0"), start, Slice(16, 37, 1, slice_type, 3, 34, 12)


@pytest.mark.parametrize(("slice_type", "before", "fault", "reason"), FAULTS)
def test_a_fault_is_named_where_it_begins(slice_type, before, fault, reason):
    piece = one_macroblock(slice_type, before + fault + "1" * 30)
    with pytest.raises(Fault, match=reason) as raised:
        macroblocks.parse(*piece)
    assert (raised.value.bit, raised.value.macroblock) == (len(before), 37)
    assert not macroblock_batch.are_valid(macroblock_batch.make_batch([piece])).any()


@pytest.mark.parametrize(("slice_type", "before", "fault", "reason"), FAULTS)
def test_what_ends_early_is_cut_short(slice_type, before, fault, reason):
    """Before the fault itself: the stop bit there ends the slice."""
    if reason == "bits follow":
        pytest.skip("the slice is whole before it")
    piece = one_macroblock(slice_type, before + "1")
    with pytest.raises(Fault, match="the slice ends within it") as raised:
        macroblocks.parse(*piece)
    assert raised.value.bit == len(before)


def test_the_place_of_the_damage_is_that_in_the_stream():
    representation = make("avc", size=(64, 48), fps=4, frames=6, strip="headers")
    stream = representation.tokenizer.decode(representation.encode(moving(6, 64, 48)))
    slices = walked(representation, stream).slices
    for place in (5, 30, 71):
        piece = slices[place]
        bits = "".join(f"{byte:08b}" for byte in piece.data[: piece.start // 8 + 1])
        bits = bits[: piece.start] + "0" * 40 + "1"
        data = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
        verdict = representation.validate(
            np.frombuffer(with_slice(stream, piece, data), np.uint8).astype(np.uint16)
        )
        assert not verdict.valid and verdict.units == place // 12
        at = piece.nal.payload + piece.start // 8
        assert verdict.error.startswith(f"byte {at}, frame {place // 12}: macroblock {place % 12}:")


def test_emulation_prevention_moves_the_place():
    representation = make("avc", size=(32, 32), frames=1, slice_mbs=0, strip="headers")
    stream = noise(representation, 0)
    (piece,) = walked(representation, stream).slices
    # A macroblock of two levels whose codes make a run of zeros, then one of no mb_type.
    bits = "".join(f"{byte:08b}" for byte in piece.data)[: piece.start]
    levels = "00000111" + 2 * ("0" * 15 + "1" + "0" * 12) + "111"
    bits += DC_16X16 + ue(0) + se(0) + levels
    data = bits + ue(26) + "1" * 10
    data = int(data.ljust(-(-len(data) // 8) * 8, "0"), 2).to_bytes(-(-len(data) // 8), "big")
    mutated = with_slice(stream, piece, data)
    assert b"\0\0\3" in mutated[piece.nal.payload :]
    (error,) = errors(representation, [mutated])
    assert error.startswith(f"byte {piece.nal.payload + len(bits) // 8 + 1}, frame 0")
    assert "macroblock 1: mb_type" in error
