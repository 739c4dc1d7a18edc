"""The AVC byte machine accepts exactly the streams that `validity` finds valid."""

import av
import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.avc.validity import validate_stream
from data_pipelines.representations.base import UNREACHABLE
from tests.data_pipelines.representations.machines import accepts, names, rows_of, select, states

SETTINGS = [
    dict(size=(32, 32), frames=4, slice_mbs=0, strip="headers"),
    dict(size=(48, 32), frames=5, slice_mbs=1, strip="none"),
    dict(size=(64, 48), frames=18, min_frames=2, slice_mbs=5, strip="headers", qp=20),
]
BYTES = np.arange(256, dtype=np.int32)


def clip_stream(representation, seed):
    """Moving noise with changes of scene, which give IDR pictures and other I pictures."""
    rng = np.random.default_rng(seed)
    width, height = representation.size
    # In long clips the noise is narrow: their streams are checked byte by byte.
    noise_shape = height * 3 // 2, width if representation.frames < 10 else 4

    def noise(levels):
        picture = np.full((height * 3 // 2, width), 128, np.uint8)
        picture[:, : noise_shape[1]] = rng.integers(0, levels, noise_shape, np.uint8)
        return picture

    frames = []
    picture = noise(256)
    for index in range(representation.frames):
        if rng.random() < 0.2:
            picture = noise(rng.choice([2, 256]))
        if rng.random() < 0.8:  # otherwise P slices of skipped macroblocks only
            picture = np.roll(picture, index, 1)
        frames.append(av.VideoFrame.from_ndarray(picture, format="yuv420p"))
    return representation.tokenizer.decode(representation.encode(frames))


def error_of(representation, stream):
    """The error of validating the structure of a stream; macroblocks are not decoded."""
    return validate_stream(
        stream,
        representation.format,
        headers=representation.strip == "none",
        min_frames=representation.min_clip_frames,
        max_frames=representation.frames,
    ).error


def mutations(streams, count, seed):
    """Damaged streams: bytes of slices and headers changed, deleted, inserted; streams spliced."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(streams[rng.integers(len(streams))])
        for _ in range(rng.integers(0, 3)):
            at = int(rng.integers(len(data)))
            # Mostly around start codes.
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
def test_machine_accepts_exactly_the_valid_of_mutated_streams(settings):
    representation = make("avc", **settings)
    streams = [clip_stream(representation, seed) for seed in range(5)]
    if representation.frames > 10:
        joined = b"".join(streams)
        assert b"\0\0\1\x65" in joined, "an IDR picture"
        assert b"\0\0\0\1\x41\x88" in joined, "an I picture that is not IDR"
        assert b"\0\0\3" in joined, "emulation prevention"
    mutated = [*streams, *mutations(streams, 300, seed=5)]
    accepted = accepts(representation.byte_machine(), mutated)
    errors = [error_of(representation, stream) for stream in mutated]
    assert accepted[: len(streams)].all()
    differ = [error for error, valid in zip(errors, accepted, strict=True) if valid != (not error)]
    assert differ == []
    assert 50 < accepted.sum() < 280


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_min_bytes_to_end_is_reached_from_every_state(settings):
    representation = make("avc", **settings)
    machine = representation.byte_machine()
    rng, count = np.random.default_rng(0), 30
    state = states(machine, count)
    streams = [bytearray() for _ in range(count)]
    # First random allowed bytes, often near 0, then those from which the end is nearest.
    random_bytes = rng.integers(0, 250, count)
    for position in range(3000):
        after = machine.min_bytes_after(rows_of(state))
        to_end = machine.min_bytes_to_end(state)
        unfinished = to_end > 0
        if not unfinished.any():
            break
        assert (after[unfinished].min(axis=1) == to_end[unfinished] - 1).all()
        score = rng.random(after.shape) + (BYTES < 4) * (rng.random((count, 1)) < 0.5)
        allowed = np.where(after < UNREACHABLE, score, -1).argmax(axis=1)
        byte = np.where(position < random_bytes, allowed, after.argmin(axis=1))
        for row in np.flatnonzero(unfinished):
            streams[row].append(byte[row])
        state = select(unfinished, machine.step(state, byte.astype(np.int32)), state)
    assert not unfinished.any()
    assert [error_of(representation, bytes(stream)) for stream in streams] == [""] * count


def test_min_bytes_of_a_stream():
    # One IDR picture of one slice: 00 00 01, the NAL unit's first byte, 24 bits of header, a byte.
    representation = make("avc", size=(32, 32), frames=1, slice_mbs=0, strip="headers")
    machine = representation.byte_machine()
    assert machine.min_bytes_to_end(machine.start()) == 3 + 1 + 3 + 1


def test_unsupported_sizes_raise():
    representation = make("avc", size=(32, 32), frames=1)
    with pytest.raises(ValueError, match=r"found size \(16, 16\), expected \(32, 32\)"):
        representation.byte_machine((16, 16))
    with pytest.raises(ValueError, match="emulation prevention"):
        make("avc", size=(2048, 2048), frames=1, slice_mbs=5461).byte_machine()
