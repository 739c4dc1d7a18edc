"""The generating machine against the judging walker: what one allows the other calls right."""

import av
import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.avc import validity
from data_pipelines.representations.base import UNREACHABLE
from tests.data_pipelines.representations.machines import ends_right, names, states

SETTINGS = [
    dict(size=(32, 32), frames=4, slice_mbs=0, strip="headers"),
    dict(size=(48, 32), frames=5, slice_mbs=1, strip="none"),
    dict(size=(64, 48), frames=24, min_frames=2, slice_mbs=5, strip="headers", qp=12),
]
BYTES = np.arange(256, dtype=np.int32)


def clip(representation, seed):
    """Noise that moves, with cuts, which give IDR pictures and I pictures that are none."""
    rng = np.random.default_rng(seed)
    width, height = representation.size
    shape = height * 3 // 2, width
    frames = []
    picture = rng.integers(0, 256, shape, np.uint8)
    for place in range(representation.frames):
        if rng.random() < 0.2:
            picture = rng.integers(0, rng.choice([2, 256]), shape, np.uint8)
        if rng.random() < 0.8:  # else P slices of nothing but skipped macroblocks
            picture = np.roll(picture, place, 1)
        frames.append(av.VideoFrame.from_ndarray(picture, format="yuv420p"))
    return representation._strip(representation.format.write(frames))


def errors(representation, streams):
    walks = validity.validate(
        list(streams),
        representation.format,
        headers=representation.strip == "none",
        least=representation.least,
        most=representation.frames,
    )
    return [walk.error for walk in walks]


def mutations(streams, count, seed):
    """Bytes of slices and headers changed, left out, put in, doubled; streams cut and joined."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(streams[rng.integers(len(streams))])
        for _ in range(rng.integers(0, 3)):
            at = int(rng.integers(len(data)))
            # Around start codes more often than elsewhere.
            if rng.random() < 0.7 and (found := data.find(b"\0\0\1", at)) >= 0:
                at = min(found + int(rng.integers(-2, 14)), len(data) - 1)
            match rng.integers(6):
                case 0:
                    data[at] ^= 1 << rng.integers(8)
                case 1:
                    data[at] = rng.choice([0, 1, 2, 3, 0x80, 0xFF])
                case 2:
                    del data[at]
                case 3:
                    data.insert(at, rng.choice([0, 3, 200]))
                case 4:
                    data = data[:at]
                case 5:
                    other = streams[rng.integers(len(streams))]
                    data = data[:at] + other[min(at, len(other)) :]
            if not data:
                break
        yield bytes(data) if data else bytes(streams[number % len(streams)])


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_machine_and_walker_agree_on_mutated_streams(settings):
    representation = make("avc", **settings)
    streams = [clip(representation, seed) for seed in range(5)]
    if representation.frames > 20:
        slices = b"".join(streams)
        assert b"\0\0\1\x65" in slices and b"\0\0\0\1\x41\x88" in slices, "IDR, I that is none"
    mutated = [*streams, *mutations(streams, 300, seed=5)]
    taken = ends_right(representation.byte_machine(), mutated)
    judged = list(errors(representation, mutated))
    assert taken[: len(streams)].all()
    assert [("" if right else "x", error) for right, error in zip(taken, judged, strict=True)] == [
        ("x" if error else "", error) for error in judged
    ]
    assert 50 < taken.sum() < 280


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_every_way_leads_to_the_end_in_as_many_bytes_as_it_says(settings):
    representation = make("avc", **settings)
    machine = representation.byte_machine()
    rng, count = np.random.default_rng(0), 30
    state = states(machine, count)
    streams = [bytearray() for _ in range(count)]
    # Each wanders for a while, with more zeros than chance would give, and then makes for the end.
    turns = rng.integers(0, 250, count)
    for place in range(3000):
        rows = type(state)(*(field[:, None] for field in state))
        futures = machine.min_bytes_after(rows)
        shortest = machine.min_bytes_to_end(state)
        going = shortest > 0
        if not going.any():
            break
        assert (futures[going].min(axis=1) <= shortest[going] - 1).all()
        wander = rng.random(futures.shape) + (BYTES < 4) * (rng.random((count, 1)) < 0.5)
        wandered = np.where(futures < UNREACHABLE, wander, -1).argmax(axis=1)
        byte = np.where(place < turns, wandered, futures.argmin(axis=1))
        for row in np.flatnonzero(going):
            streams[row].append(byte[row])
        after = machine.step(state, byte.astype(np.int32))
        state = type(state)(*(np.where(going, a, b) for a, b in zip(after, state, strict=True)))
    assert not going.any()
    assert errors(representation, map(bytes, streams)) == [""] * count


def test_the_shortest_stream_is_known():
    # One IDR picture in one slice: 00 00 01, the NAL's first byte, 24 bits of header, 13 bits for
    # each of four macroblocks, the stop bit.
    representation = make("avc", size=(32, 32), frames=1, slice_mbs=0, strip="headers")
    machine = representation.byte_machine()
    assert machine.min_bytes_to_end(machine.start()) == 3 + 1 + 3 + -(-(4 * 13 + 1) // 8)


def test_what_cannot_be_constrained_is_refused():
    representation = make("avc", size=(32, 32), frames=1)
    with pytest.raises(ValueError, match=r"found size \(16, 16\), expected \(32, 32\)"):
        representation.byte_machine((16, 16))
    with pytest.raises(ValueError, match="emulation prevention"):
        make("avc", size=(4096, 2304), frames=1).byte_machine()
