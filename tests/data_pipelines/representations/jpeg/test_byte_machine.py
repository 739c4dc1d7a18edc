"""The generating machine against the judging walker: what one allows the other calls valid."""

import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.base import UNREACHABLE
from tests.data_pipelines.representations.jpeg.mutations import mutations, synthetic
from tests.data_pipelines.representations.machines import ends_right, names, states

SETTINGS = [
    dict(size=48),
    dict(size=(70, 41), quality=60, subsampling="4:2:2", restart_interval=3, strip="header"),
    dict(size=40, quality=75, subsampling="4:4:4", restart_interval=7, strip="none"),
    dict(size=32, mode="L", restart_interval=2, strip="header"),
    dict(size=(17, 23), mode="L", quality=100, restart_interval=0, strip="header"),
]
BYTES = np.arange(256, dtype=np.int32)


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_machine_and_walker_agree_on_mutated_files(settings):
    representation = make("jpeg", **settings)
    whole = [representation.encode(synthetic(60, 50, seed)) for seed in range(6)]
    streams = [tokens.astype(np.uint8).tobytes() for tokens in whole]
    mutated = [stream for stream in mutations(streams, 300, seed=5) if stream]
    taken = ends_right(representation.byte_machine(), mutated)
    judged = representation.validate_batch([np.frombuffer(stream, np.uint8) for stream in mutated])
    assert taken.tolist() == [judgement.valid for judgement in judged]
    assert 10 < taken.sum() < 290


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_every_way_leads_to_the_end_in_as_many_bytes_as_it_says(settings):
    representation = make("jpeg", **settings)
    machine = representation.byte_machine()
    rng, count = np.random.default_rng(0), 150
    state = states(machine, count)
    streams = [bytearray() for _ in range(count)]
    # Each wanders for a while, with more FF than chance would give, and then makes for the end.
    turns = rng.integers(0, 300, count)
    for place in range(3000):
        rows = type(state)(*(field[:, None] for field in state))
        futures = machine.min_bytes_after(rows)
        walked = np.broadcast_to(machine.min_bytes_to_end(machine.step(rows, BYTES)), futures.shape)
        np.testing.assert_array_equal(futures, np.where(walked >= UNREACHABLE, UNREACHABLE, walked))
        shortest = machine.min_bytes_to_end(state)
        going = shortest > 0
        if not going.any():
            break
        assert (futures[going].min(axis=1) == shortest[going] - 1).all()
        wander = rng.random(futures.shape) + (BYTES == 255) * (rng.random((count, 1)) < 0.3)
        wandered = np.where(futures < UNREACHABLE, wander, -1).argmax(axis=1)
        byte = np.where(place < turns, wandered, futures.argmin(axis=1))
        for row in np.flatnonzero(going):
            streams[row].append(byte[row])
        after = machine.step(state, byte.astype(np.int32))
        state = type(state)(*(np.where(going, a, b) for a, b in zip(after, state, strict=True)))
    assert not going.any()
    judged = representation.validate_batch([np.frombuffer(bytes(s), np.uint8) for s in streams])
    assert [judgement.error for judgement in judged] == [""] * count


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[1], SETTINGS[3]], ids=names)
def test_from_every_state_some_byte_leads_nearer_to_the_end(settings):
    machine = make("jpeg", **settings).byte_machine()
    words = np.unique(machine.table)
    words = words[words & 127 != 127]
    data = type(machine.start())
    for mcus in (1, 2, 3):
        for part in np.array_split(words, 40):
            column = part[:, None]
            state = data(np.full_like(column, 1), column, np.full_like(column, mcus), 0 * column)
            nearest = machine.min_bytes_after(state).min(axis=1)
            assert (nearest <= machine.min_bytes_to_end(state)[:, 0] - 1).all()


def test_the_shortest_file_is_known():
    # Grey, two blocks, no markers: twice six bits, EOI.
    machine = make("jpeg", size=(16, 8), mode="L", restart_interval=0, strip="header")
    assert machine.byte_machine().min_bytes_to_end(machine.byte_machine().start()) == 2 + 2


@pytest.mark.parametrize(
    ("settings", "size", "sentence"),
    [
        (dict(size=None), None, "images have their own sizes"),
        (dict(size=32), (16, 16), "found size (16, 16), expected (32, 32)"),
        (dict(size=None), (0, 16), "found size (0, 16)"),
    ],
)
def test_a_size_that_cannot_be_is_refused(settings, size, sentence):
    with pytest.raises(ValueError) as error:
        make("jpeg", **settings).byte_machine(size)
    assert sentence in str(error.value)
