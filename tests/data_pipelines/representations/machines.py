"""What the tests of every byte machine do with one."""

import numpy as np


def names(settings):
    return "-".join(str(value) for value in settings.values())


def states(machine, count):
    return type(machine.start())(*(np.full(count, value) for value in machine.start()))


def ends_right(machine, streams):
    """Whether the machine takes each stream and is then at its end."""
    state = states(machine, len(streams))
    for place in range(max(map(len, streams))):
        there = np.array([place < len(stream) for stream in streams])
        byte = np.array([stream[place] if place < len(stream) else 0 for stream in streams])
        after = machine.step(state, byte.astype(np.int32))
        state = type(state)(*(np.where(there, a, b) for a, b in zip(after, state, strict=True)))
    return machine.min_bytes_to_end(state) == 0
