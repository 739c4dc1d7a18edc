"""The JPEG byte machine accepts exactly the streams that `validity` finds valid."""

import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.base import UNREACHABLE
from data_pipelines.representations.jpeg.byte_machine import Phase
from tests.data_pipelines.representations.jpeg.mutations import mutations, synthetic
from tests.data_pipelines.representations.machines import accepts, names, rows_of, select, states

SETTINGS = [
    dict(size=48),
    dict(size=(70, 41), quality=60, subsampling="4:2:2", restart_interval=3, strip="header"),
    dict(size=40, quality=75, subsampling="4:4:4", restart_interval=7, strip="none"),
    dict(size=32, mode="L", restart_interval=2, strip="header"),
    dict(size=(17, 23), mode="L", quality=100, restart_interval=0, strip="header"),
]
BYTES = np.arange(256, dtype=np.int32)


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_machine_accepts_exactly_the_valid_of_mutated_streams(settings):
    representation = make("jpeg", **settings)
    whole = [representation.encode(synthetic(60, 50, seed)) for seed in range(6)]
    streams = [tokens.astype(np.uint8).tobytes() for tokens in whole]
    mutated = [stream for stream in mutations(streams, 300, seed=5) if stream]
    accepted = accepts(representation.byte_machine(), mutated)
    results = representation.validate_batch([np.frombuffer(stream, np.uint8) for stream in mutated])
    assert accepted.tolist() == [result.valid for result in results]
    assert 10 < accepted.sum() < 290


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_min_bytes_to_end_is_reached_from_every_state(settings):
    representation = make("jpeg", **settings)
    machine = representation.byte_machine()
    rng, count = np.random.default_rng(0), 150
    state = states(machine, count)
    streams = [bytearray() for _ in range(count)]
    # First random allowed bytes, often FF, then those from which the end is nearest.
    random_bytes = rng.integers(0, 300, count)
    for position in range(3000):
        rows = rows_of(state)
        after = machine.min_bytes_after(rows)
        stepped = np.broadcast_to(machine.min_bytes_to_end(machine.step(rows, BYTES)), after.shape)
        np.testing.assert_array_equal(after, np.minimum(stepped, UNREACHABLE))
        to_end = machine.min_bytes_to_end(state)
        unfinished = to_end > 0
        if not unfinished.any():
            break
        assert (after[unfinished].min(axis=1) == to_end[unfinished] - 1).all()
        score = rng.random(after.shape) + (BYTES == 255) * (rng.random((count, 1)) < 0.3)
        allowed = np.where(after < UNREACHABLE, score, -1).argmax(axis=1)
        byte = np.where(position < random_bytes, allowed, after.argmin(axis=1))
        for row in np.flatnonzero(unfinished):
            streams[row].append(byte[row])
        state = select(unfinished, machine.step(state, byte.astype(np.int32)), state)
    assert not unfinished.any()
    results = representation.validate_batch([np.frombuffer(bytes(s), np.uint8) for s in streams])
    assert [result.error for result in results] == [""] * count


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[1], SETTINGS[3]], ids=names)
def test_some_byte_reduces_min_bytes_to_end_in_every_state(settings):
    machine = make("jpeg", **settings).byte_machine()
    words = np.unique(machine.table)
    words = words[words & 127 != 127]
    state_type = type(machine.start())
    for mcus in (1, 2, 3):
        for part in np.array_split(words, 40):
            column = part[:, None]
            state = state_type(
                phase=np.full_like(column, Phase.DATA),
                word=column,
                mcus=np.full_like(column, mcus),
                segments=0 * column,
            )
            after = machine.min_bytes_after(state).min(axis=1)
            assert (after <= machine.min_bytes_to_end(state)[:, 0] - 1).all()


def test_min_bytes_of_a_file():
    # Grey, two blocks, no restart markers: twice six bits, then EOI.
    machine = make("jpeg", size=(16, 8), mode="L", restart_interval=0, strip="header")
    assert machine.byte_machine().min_bytes_to_end(machine.byte_machine().start()) == 2 + 2


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        (dict(size=None), None, "images have their own sizes"),
        (dict(size=32), (16, 16), "found size (16, 16), expected (32, 32)"),
        (dict(size=None), (0, 16), "found size (0, 16)"),
    ],
)
def test_unusable_sizes_raise(settings, size, message):
    with pytest.raises(ValueError) as error:
        make("jpeg", **settings).byte_machine(size)
    assert message in str(error.value)
