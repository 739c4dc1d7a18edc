"""Functions for tests of byte machines."""

import numpy as np


def names(settings):
    return "-".join(str(value) for value in settings.values())


def states(machine, count):
    return type(machine.start())(*(np.full(count, value) for value in machine.start()))


def rows_of(state):
    """A state of arrays [B] as one of arrays [B, 1]."""
    return type(state)(*(field[:, None] for field in state))


def select(condition, new, old):
    """`new` where the condition holds, else `old`, for each field of two states."""
    return type(old)(*(np.where(condition, a, b) for a, b in zip(new, old, strict=True)))


def accepts(machine, streams):
    """Whether the machine accepts each stream and is then at its end, bool [streams]."""
    lengths = np.array([len(stream) for stream in streams])
    data = np.zeros((len(streams), lengths.max()), np.int32)
    for row, stream in zip(data, streams, strict=True):
        row[: len(stream)] = np.frombuffer(stream, np.uint8)
    state = states(machine, len(streams))
    for position, byte in enumerate(data.T):
        state = select(position < lengths, machine.step(state, byte), state)
    return machine.min_bytes_to_end(state) == 0
