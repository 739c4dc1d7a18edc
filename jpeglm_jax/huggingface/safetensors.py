"""The safetensors format: reads tensors one at a time, writes files one at a time.

A file is the length of its header (8 bytes, little-endian), the header as JSON (name -> dtype,
shape, data_offsets), and the tensors one after the other without gaps
(https://github.com/huggingface/safetensors, "Format"). Several files are joined by an index of
the tensors in each. Tensors are read by seeking, not by mapping the file, so that memory holds one
tensor and not all touched pages of the file. `convert` and the evaluations read weights with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from jpeglm_jax.huggingface import ConversionError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Stored types of weights: our name -> (the format's, NumPy's).
DTYPES = {
    "float32": ("F32", np.dtype("<f4")),
    "float16": ("F16", np.dtype("<f2")),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}
_NAMES = {stored: name for name, (stored, _) in DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; the format's own limit
_LFS_POINTER = b"version https://git-lfs"


class Tensor(NamedTuple):
    """The location of a tensor.

    Attributes:
      file: the file with the tensor.
      dtype: a key of DTYPES, or the format's own name of another one.
      shape: of the tensor.
      start: first byte in the file.
      end: the byte after its last.
    """

    file: epath.Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> np.ndarray:
        """The tensor in its stored type. Raises ConversionError for a type not in DTYPES."""
        if self.dtype not in DTYPES:
            raise ConversionError(
                f"{self.file} holds a tensor of type {self.dtype}; expected {', '.join(DTYPES)}"
            )
        with self.file.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.end - self.start)
        if len(data) != self.end - self.start:
            raise ConversionError(f"{self.file} ended while it was read; is it being changed?")
        return np.frombuffer(data, DTYPES[self.dtype][1]).reshape(self.shape)


def open_folder(folder: epath.PathLike) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name; only the headers of its files are read.

    Raises:
      ConversionError: there are no safetensors, a file is missing or damaged, or the index and
        the files do not agree.
    """
    folder = epath.Path(folder)
    index = folder / INDEX_FILE
    if not index.is_file():
        if not (folder / SINGLE_FILE).is_file():
            raise ConversionError(_nothing_to_read(folder))
        return read_header(folder / SINGLE_FILE)
    where = _read_index(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        if not (folder / name).is_file():
            raise ConversionError(f"{folder} has no {name}, which {INDEX_FILE} names; fetch it")
        found = read_header(folder / name)
        wrong = sorted(found.keys() ^ {tensor for tensor, file in where.items() if file == name})
        if wrong:
            raise ConversionError(
                f"{folder}: {INDEX_FILE} and {name} disagree on {_some(wrong)}; fetch both again"
            )
        tensors |= found
    return tensors


def _read_index(index: epath.Path) -> dict[str, str]:
    """tensor -> name of its file."""
    try:
        where = json.loads(index.read_text())["weight_map"]
        names = set(where.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(
            f"{index} is no index of safetensors ({type(error).__name__}: {error}); expected JSON "
            "with a weight_map"
        ) from error
    outside = sorted(str(name) for name in names if not _is_plain(name))
    if outside:
        raise ConversionError(f"{index} names files outside its folder: {_some(outside)}")
    return where


def _is_plain(name: Any) -> bool:
    """Whether it is the name of a file of the same folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\"}


def _nothing_to_read(folder: epath.Path) -> str:
    pickled = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if not pickled:
        return f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; expected a Llama checkpoint"
    return (
        f"{folder} holds its weights as pickles ({_some(pickled)}), which can run any code when "
        "read and are not read here. If you trust their origin, write them as safetensors in an "
        "environment with transformers and torch: from transformers import AutoModelForCausalLM; "
        f'AutoModelForCausalLM.from_pretrained("{folder}", torch_dtype="auto")'
        '.save_pretrained("NEW_FOLDER"); then copy tokenizer.model into that folder'
    )


def read_header(path: epath.Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises ConversionError for a damaged file or another format."""
    length = path.stat().length
    with path.open("rb") as file:
        first = file.read(8)
        size = int.from_bytes(first, "little")
        if len(first) < 8 or size > min(_MAX_HEADER, length - 8):
            pointer = (first + file.read(64)).startswith(_LFS_POINTER)
            hint = "a pointer of Git LFS: run `git lfs pull`" if pointer else "damaged or cut off"
            raise ConversionError(
                f"{path} is no safetensors file of {length:,} bytes: it is {hint}"
            )
        header = file.read(size)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {name: _entry(path, 8 + size, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(
            f"the header of {path} is damaged ({type(error).__name__}: {error}); fetch it again"
        ) from error
    at = 8 + size
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start != at:
            raise ConversionError(
                f"{path}: {name} begins at byte {tensor.start:,}, expected {at:,}; fetch it again"
            )
        at = tensor.end
    if at != length:
        raise ConversionError(
            f"{path} has {length:,} bytes, expected {at:,} by its header; fetch it again"
        )
    return tensors


def _entry(path: epath.Path, data: int, entry: dict[str, Any]) -> Tensor:
    shape = tuple(int(side) for side in entry["shape"])
    start, end = (int(offset) for offset in entry["data_offsets"])
    dtype = _NAMES.get(entry["dtype"], str(entry["dtype"]))
    if min(shape, default=0) < 0 or not 0 <= start <= end:
        raise ValueError(f"found shape {shape} at {start} to {end}")
    if dtype in DTYPES and end - start != math.prod(shape) * DTYPES[dtype][1].itemsize:
        raise ValueError(f"found {end - start} bytes for {dtype} {list(shape)}")
    return Tensor(path, dtype, shape, data + start, data + end)


class Shard(NamedTuple):
    """A file to write: its name, and the names and shapes of its tensors in order."""

    file: str
    tensors: list[tuple[str, tuple[int, ...]]]


def plan(tensors: Sequence[tuple[str, tuple[int, ...]]], dtype: str, max_bytes: int) -> list[Shard]:
    """Assigns tensors, in order, to files of at most `max_bytes`, but at least one tensor each."""
    groups: list[list[tuple[str, tuple[int, ...]]]] = []
    room = 0
    for name, shape in tensors:
        size = math.prod(shape) * DTYPES[dtype][1].itemsize
        if not groups or size > room:
            groups.append([])
            room = max_bytes
        groups[-1].append((name, shape))
        room -= size
    if len(groups) == 1:
        return [Shard(SINGLE_FILE, groups[0])]
    return [
        Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group)
        for number, group in enumerate(groups, 1)
    ]


def write(folder: epath.Path, shards: Sequence[Shard], dtype: str, arrays: Iterator[np.ndarray]):
    """Writes the files, and their index if there are several.

    Args:
      folder: an existing folder.
      shards: the tensors of each file, from `plan`.
      dtype: a key of DTYPES; arrays are rounded to it.
      arrays: the tensors in the order of the plan, consumed one after the other.

    Raises:
      ConversionError: an array has another shape than planned, values that are NaN or infinite, or
        values that the type cannot hold.
    """
    for shard in shards:
        with (folder / shard.file).open("wb") as file:
            file.write(_header(shard, dtype))
            for name, shape in shard.tensors:
                array = next(arrays)
                if array.shape != shape:
                    raise ConversionError(f"{name} has shape {array.shape}, expected {shape}")
                file.write(_rounded(name, array, dtype).data)
    if len(shards) > 1:
        itemsize = DTYPES[dtype][1].itemsize
        where = {name: shard.file for shard in shards for name, _ in shard.tensors}
        size = sum(itemsize * math.prod(shape) for shard in shards for _, shape in shard.tensors)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _header(shard: Shard, dtype: str) -> bytes:
    stored, kind = DTYPES[dtype]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses
    at = 0
    for name, shape in shard.tensors:
        end = at + math.prod(shape) * kind.itemsize
        entries[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of eight bytes
    return len(header).to_bytes(8, "little") + header


def require_finite(name: str, array: np.ndarray) -> None:
    """Raises ConversionError, naming the tensor, if values are NaN or infinite."""
    finite = np.isfinite(array)
    if not finite.all():
        raise ConversionError(
            f"{name} has {np.sum(~finite):,} values that are NaN or infinite; expected finite "
            "weights: use another checkpoint"
        )


def _rounded(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes of the array in the stored type, uint8 [n]."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array.astype(DTYPES[dtype][1], order="C"))
    require_finite(name, array)
    if not np.isfinite(stored).all():
        raise ConversionError(
            f"{name} has values up to {np.abs(array).max():g}, which {dtype} cannot hold; write "
            "float32 or bfloat16"
        )
    return stored.reshape(-1).view(np.uint8)


def _some(names: Sequence[str], max_names: int = 6) -> str:
    """The first names, and the number of the others."""
    rest = len(names) - max_names
    return ", ".join(names[:max_names]) + (f" and {rest} more" if rest > 0 else "")
