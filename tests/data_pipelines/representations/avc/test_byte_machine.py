"""The generating machine against the judge and FFmpeg: what one allows the others call right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.avc import macroblock_automaton, macroblocks, validity
from data_pipelines.representations.base import UNREACHABLE
from tests.data_pipelines.representations.avc.clips import moving
from tests.data_pipelines.representations.avc.mutations import complaints, noise, walked
from tests.data_pipelines.representations.machines import names

SETTINGS = [
    dict(size=(32, 32), frames=4, slice_mbs=0, strip="headers"),
    dict(size=(48, 32), frames=5, slice_mbs=1, strip="none"),
    dict(size=(64, 48), frames=24, min_frames=2, slice_mbs=5, strip="headers", qp=30),
]


def errors(representation, streams):
    walks = validity.validate_streams(
        list(streams),
        representation.format,
        headers=representation.strip == "none",
        min_frames=representation.min_clip_frames,
        max_frames=representation.frames,
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


def states(machine, count):
    return type(machine.start())(*(jnp.full(count, value) for value in machine.start()))


def pick(choose, new, old):
    return type(old)(*(jnp.where(choose, a, b) for a, b in zip(new, old, strict=True)))


@jax.jit
def follow(machine, state, columns, lengths):
    """`min_bytes_to_end` after streams, bytes int32 [longest, B]."""

    def one(carry, byte_B):
        state, place = carry
        return (pick(place < lengths, machine.step(state, byte_B), state), place + 1), None

    (state, _), _ = jax.lax.scan(one, (state, 0), columns)
    return machine.min_bytes_to_end(state)


def ends_right(machine, streams):
    """Whether the machine takes each stream and is then at its end."""
    columns = np.zeros((max(map(len, streams)), len(streams)), np.int32)
    for row, stream in enumerate(streams):
        columns[: len(stream), row] = np.frombuffer(stream, np.uint8)
    lengths = np.array([len(stream) for stream in streams])
    return np.asarray(follow(machine, states(machine, len(streams)), columns, lengths)) == 0


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_machine_and_judge_agree_on_mutated_streams(settings):
    representation = make("avc", **settings)
    streams = [noise(representation, seed) for seed in range(5)]
    if representation.frames > 20:
        slices = b"".join(streams)
        assert b"\0\0\1\x65" in slices and b"\0\0\0\1\x41\x88" in slices, "IDR, I that is none"
    mutated = [*streams, *mutations(streams, 120, seed=5)]
    taken = ends_right(representation.byte_machine(), mutated)
    judged = errors(representation, mutated)
    assert taken[: len(streams)].all()
    assert [("" if right else "x", error) for right, error in zip(taken, judged, strict=True)] == [
        ("x" if error else "", error) for error in judged
    ]
    assert 20 < taken.sum() < 110


@functools.partial(jax.jit, static_argnames="check")
def wander(machine, state, key, wanders, check):
    """One byte on: at random among those that are allowed, or towards the end.

    Returns (state, bytes, which rows are not at the end, whether some byte leads nearer to it,
    whether `min_bytes_after` is what `step` leads to).
    """
    rows = type(state)(*(field[:, None] for field in state))
    after, now = machine.min_bytes_after(rows), machine.min_bytes_to_end(state)
    going = now > 0
    nearer = jnp.all(jnp.where(going, after.min(axis=1) < now, True))
    same = True
    if check:
        stepped = machine.min_bytes_to_end(machine.step(rows, jnp.arange(256, dtype=jnp.int32)))
        same = jnp.all(jnp.where(going[:, None], after == stepped, True))
    # More zeros than chance would give: start codes and emulation prevention.
    zeros = jax.random.uniform(jax.random.fold_in(key, 1), (len(now), 1)) < 0.5
    wish = jax.random.uniform(key, after.shape) + (jnp.arange(256) < 4) * zeros
    wanted = jnp.where(after < UNREACHABLE, wish, -1).argmax(axis=1)
    byte = jnp.where(wanders, wanted, after.argmin(axis=1)).astype(jnp.int32)
    return pick(going, machine.step(state, byte), state), byte, going, nearer, same


def wandered(representation, count, longest, seed, check=False):
    """Streams of any bytes that are allowed; each makes for the end after some of them."""
    machine = representation.byte_machine()
    turns = np.random.default_rng(seed).integers(0, longest, count)
    state, streams = states(machine, count), [bytearray() for _ in range(count)]
    for place in range(longest + 5000):
        key = jax.random.fold_in(jax.random.key(seed), place)
        state, byte, going, nearer, same = wander(machine, state, key, place < turns, check)
        assert nearer and same
        if not np.any(going):
            return [bytes(stream) for stream in streams]
        for row in np.flatnonzero(going):
            streams[row].append(byte[row])
    raise AssertionError("no end")


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=names)
def test_any_allowed_bytes_decode_without_a_complaint(settings):
    representation = make("avc", **settings)
    streams = wandered(representation, 32, 200, seed=0)
    assert errors(representation, streams) == [""] * len(streams)
    assert [complaints(representation, stream) for stream in streams] == [[]] * len(streams)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "settings",
    [
        *SETTINGS,
        dict(size=(64, 48), frames=5, slice_mbs=7, strip="headers", qp=12),
        dict(size=(256, 144), frames=3, slice_mbs=0, strip="headers"),
        dict(size=(320, 256), frames=3, slice_mbs=300, strip="headers"),
        dict(size=(256, 144), frames=3, slice_mbs=1, strip="headers"),
    ],
    ids=names,
)
def test_any_allowed_bytes_decode_without_a_complaint_at_every_slice_size(settings):
    representation = make("avc", **settings)
    for seed in range(2):
        streams = wandered(representation, 64, 1500, seed, check=settings in SETTINGS)
        assert errors(representation, streams) == [""] * len(streams)
        assert [complaints(representation, stream) for stream in streams] == [[]] * len(streams)


@pytest.mark.parametrize(
    "settings",
    [*SETTINGS[:2], pytest.param(SETTINGS[2] | dict(frames=4), marks=pytest.mark.slow)],
    ids=names,
)
def test_every_bit_of_x264_is_allowed_and_leads_on(settings):
    """The automaton on numpy's arrays, bit for bit: from every state some bit leads nearer."""
    representation = make("avc", **settings)
    streams = [noise(representation, 0)]
    tokens = representation.encode(moving(representation.frames, *representation.size))
    streams.append(representation.tokenizer.decode(tokens))
    pieces = [piece for stream in streams for piece in walked(representation, stream).slices]
    shapes = [piece.shape for piece in pieces]
    context = macroblock_automaton.Context(
        *(
            np.array(values, np.int32)
            for values in zip(*((s.first, s.mbs, s.num_ref_idx) for s in shapes), strict=True)
        )
    )
    size, rate = representation.format, macroblocks.mvd_bits
    columns, rows = -(-size.width // 16), -(-size.height // 16)
    automaton = macroblock_automaton.automaton(
        columns, size.mbs, size.slice_mbs or size.mbs, rate(columns, rows)
    )
    bits = [np.unpackbits(np.frombuffer(p.data, np.uint8))[p.start :] for p in pieces]
    longest = max(map(len, bits))
    table = np.stack([np.pad(row, (0, longest - len(row))) for row in bits]).astype(np.int32)
    registers = automaton.start(context)
    for place in range(longest):
        before = automaton.bits_to_end(registers, context)
        ways = [automaton.step(registers, np.full(len(bits), bit), context) for bit in range(2)]
        ahead = np.minimum(*(automaton.bits_to_end(way, context) for way in ways))
        assert (ahead < before)[before > 0].all()
        registers = automaton.step(registers, table[:, place], context)
    assert (automaton.bits_to_end(registers, context) == 0).all()


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
        make("avc", size=(2048, 2048), frames=1, slice_mbs=5461).byte_machine()
