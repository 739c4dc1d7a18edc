"""Places the rows that a process has read on its devices, as shards of global arrays."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np


def rows_of_process(sharding: jax.sharding.Sharding, global_shape: tuple[int, ...]) -> np.ndarray:
    """The rows of a batch of which a device of this process has some part.

    Processes get the same rows if their devices split rows along the sequence or replicate them.

    Args:
      sharding: of the batch.
      global_shape: (rows, ...) of the global batch.

    Returns:
      int64, ascending, each row once.
    """
    slices = sharding.addressable_devices_indices_map(tuple(global_shape)).values()
    held = np.zeros(global_shape[0], bool)
    for index in slices:
        held[index[0] if index else slice(None)] = True
    return np.flatnonzero(held)


def to_global_arrays(
    batch: Mapping[str, np.ndarray],
    sharding: jax.sharding.Sharding,
    rows: np.ndarray,
    batch_size: int,
) -> dict[str, jax.Array]:
    """Makes global arrays from the rows of this process.

    Args:
      batch: arrays [len(rows), ...].
      sharding: of the global arrays; the devices of this process need only these rows.
      rows: ascending indices of these rows in the global batch; see `rows_of_process`.
      batch_size: rows of the global batch.

    Returns:
      Global arrays [batch_size, ...].
    """

    def global_array(values: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # every device of the sharding has some part
            start, stop, _ = index[0].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return values[first : first + stop - start][(slice(None), *index[1:])]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, part)

    return {name: global_array(values) for name, values in batch.items()}
