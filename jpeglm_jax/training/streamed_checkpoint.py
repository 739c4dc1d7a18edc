"""Checkpoints of weights that do not fit into memory, written and read part by part.

Orbax writes and reads a tree of arrays through a handler for each type of array. The handler here
writes a `Streamed` array part by part, each stored before the next is made, and restores arrays as
open TensorStores that are not read. All else (atomic commit, metadata, format) is Orbax's, so
`checkpoint.load` reads such a checkpoint like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from orbax.checkpoint import future, type_handlers

from jpeglm_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Streamed:
    """An array that comes in parts.

    Attributes:
      shape: of the whole.
      dtype: of the whole; parts are of it, or of one that it holds exactly.
      part_shape: of the largest part.
      parts: iterates over the parts, from the start at each call: (index into the whole, values).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    part_shape: tuple[int, ...]
    parts: Callable[[], Iterable[tuple[Any, np.ndarray]]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def whole(self) -> np.ndarray:
        """All parts put together."""
        whole = np.empty(self.shape, self.dtype)
        for index, part in self.parts():
            whole[index] = part
        return whole


class _Handler(type_handlers.NumpyHandler):
    """Writes `Streamed` arrays, and restores any array as an open TensorStore.

    In the checkpoint they are NumPy arrays, which Orbax restores as whatever it is asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()

    async def serialize(
        self,
        values: Sequence[Streamed],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[future.Future]:
        """See `TypeHandler.serialize`. One array after the other, on a thread of Orbax's."""
        options = args or [ocp.SaveArgs()] * len(values)
        writing = self._write(values, infos, options)
        return [future.CommitFutureAwaitingContractedSignals(writing, name="streaming")]

    async def _write(
        self, values: Sequence[Streamed], infos: Sequence[Any], options: Sequence[ocp.SaveArgs]
    ) -> None:
        for value, info, option in zip(values, infos, options, strict=True):
            await info.await_path_creation()
            spec = type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=info.is_ocdbt_checkpoint,
                global_shape=value.shape,
                local_shape=value.part_shape,
                dtype=value.dtype,
                process_index=0,
                arg=option,
            )
            store = await tensorstore.open(
                tensorstore.Spec(spec), create=True, open=True, context=info.ts_context
            )
            for index, part in value.parts():
                if self.stopped.is_set():
                    return  # the save that waited for this was given up, and commits nothing
                await _store(store[index], np.ascontiguousarray(part, value.dtype))

    async def deserialize(
        self,
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.RestoreArgs] | None = None,
    ) -> Sequence[Any]:
        """See `TypeHandler.deserialize`. Opens the arrays and reads nothing of them."""
        del args
        return [
            await tensorstore.open(
                tensorstore.Spec(
                    type_handlers.get_json_tspec_read(info, use_ocdbt=info.is_ocdbt_checkpoint)
                ),
                open=True,
                context=info.ts_context,
            )
            for info in infos
        ]


async def _store(place: tensorstore.TensorStore, part: np.ndarray) -> None:
    """Writes; a full disk raises the OSError of the operating system."""
    try:
        await place.write(part)
    except ValueError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def save(workdir: epath.PathLike, params: Any, meta: dict[str, Any], step: int = 0) -> None:
    """Writes a checkpoint of weights alone.

    Args:
      workdir: of a run without checkpoints.
      params: a nested dict of `Streamed` arrays.
      meta: its page of JSON.
      step: what it is called.

    Raises:
      What making or storing a part raised (OSError for a full disk); there is then no checkpoint.
    """
    handler = _Handler()
    with _quiet():
        manager = ocp.CheckpointManager(
            checkpoint.orbax_path(workdir),
            item_handlers={"params": _tree_handler(handler), "meta": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
        )
        options = jax.tree.map(
            lambda _: ocp.SaveArgs(chunk_byte_size=checkpoint.CHUNK_BYTES), params
        )
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(params, save_args=options), meta=ocp.args.JsonSave(meta)
        )
        try:
            manager.save(step, args=items)
        finally:
            handler.stopped.set()  # after Ctrl-C the thread that writes would go on to the end
            manager.close()


def open_arrays(workdir: epath.PathLike, step: int, item: str, shapes: Any) -> Any:
    """The arrays of a checkpoint, opened for reading parts of them.

    Args:
      workdir: the run's folder.
      step: an existing checkpoint.
      item: "params" or "ema".
      shapes: tree of shapes and dtypes to be found.

    Returns:
      The same tree of `tensorstore.TensorStore`: `store[a:b].read().result()` is an array.
    """
    with _quiet():
        reader = ocp.Checkpointer(_tree_handler(_Handler()))
        as_streamed = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=Streamed), shapes)
        args = ocp.args.PyTreeRestore(item=shapes, restore_args=as_streamed)
        return reader.restore(checkpoint.orbax_path(workdir) / str(step) / item, args=args)


def _tree_handler(handler: _Handler) -> ocp.PyTreeCheckpointHandler:
    registry = type_handlers.create_type_handler_registry((Streamed, handler))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns that the handler keeps no metadata of `jax.Array`s, of which there are none, and
    logs what is raised besides raising it."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
