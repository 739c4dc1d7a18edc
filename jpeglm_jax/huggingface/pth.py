"""Reads the tensors of PyTorch's .pth files without executing any pickle.

A pickle is a program that normally runs when it is loaded. Here its instructions are parsed and
interpreted on a stack of plain values. Nothing is imported, and only the few functions of a table
below, which assemble tensors, are called. Everything else raises PthError. Weights files of
evaluations and of perceptual losses are read with it.
"""

from __future__ import annotations

import io
import lzma
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# Raised by `zipfile` for damage, and for members with encryption or unknown compression.
_ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(ValueError, IndexError, OverflowError, RuntimeError),
)
_MAX_DIMENSIONS = 16
_MAX_NUMBERS = 2**40
_STORAGE_TYPES: Mapping[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field
# A .pth file written before PyTorch 1.6 begins with a pickled long of this value.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class PthError(ValueError):
    """A file that does not hold tensors as PyTorch saves them, or whose pickle does more."""


def read(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a state dict, by name, from the bytes of a file that `torch.save` has written.

    Shapes and dtypes are as stored; the arrays are read-only. Raises PthError, see the module
    docstring.
    """
    value, stored = _read_zip(data) if data[:4] == b"PK\x03\x04" else _read_legacy(data)
    storages: dict[_Storage, np.ndarray] = {}
    tensors = {}
    for name, tensor in _tensors(value).items():
        if tensor.storage not in storages:
            storages[tensor.storage] = stored(tensor.storage)
        numbers = storages[tensor.storage][tensor.offset :]
        strides = [step * numbers.itemsize for step in tensor.strides]
        # Not copied: a small file could refer to the same numbers a million times.
        tensors[str(name)] = np.lib.stride_tricks.as_strided(
            numbers, tensor.shape, strides, writeable=False
        )
    if not tensors:
        raise PthError("it holds no tensor")
    return tensors


class _Global(NamedTuple):
    """The name of something that a pickle would import."""

    module: str
    name: str


class _Storage(NamedTuple):
    """A flat array of numbers, read later by its key."""

    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    _of_type(storage, _Storage)
    numbers = [offset, *_of_type(shape, tuple), *_of_type(strides, tuple)]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise PthError("a tensor's offset, shape and strides are not all natural numbers")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise PthError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    # Otherwise a view could repeat one number without end, or read outside its storage.
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if size > storage.size or (size and last >= storage.size):
        raise PthError(f"a tensor of {size} numbers lies outside its {storage.size}")
    return _Tensor(storage, offset, shape, strides)


def _storage(kind: Any, storage_type: Any, key: Any, _: Any, size: Any, *view: Any) -> _Storage:
    name = storage_type.name if isinstance(storage_type, _Global) else ""
    if kind != "storage" or name not in _STORAGE_TYPES or any(part is not None for part in view):
        raise PthError("a storage is not described in PyTorch's form")
    if type(key) is not str or type(size) is not int or not 0 <= size < _MAX_NUMBERS:
        raise PthError("a storage has no key or an invalid size")
    return _Storage(np.dtype(_STORAGE_TYPES[name]), key, size)


# The only functions that a file may call.
_CALLABLE: Mapping[_Global, Callable[..., Any]] = {
    _Global("collections", "OrderedDict"): lambda *items: dict(*items),
    _Global("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    _Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    _Global("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}
_KNOWN = {*_CALLABLE, *(_Global("torch", name) for name in _STORAGE_TYPES)}
_MARK = object()


def read_pickle(file: IO[bytes]) -> Any:
    """The value of the pickle at the file's position, of plain values and tensors alone.

    Leaves the file position at the end of the pickle. Raises PthError for anything else, without
    side effects.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return stack.pop()
            _interpret(opcode.name, argument, stack, memo)
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise PthError(f"the pickle in it is damaged: {error!r}") from error
    except ValueError as error:
        if isinstance(error, PthError):
            raise
        raise PthError(f"the pickle in it is damaged: {error}") from error
    raise PthError("the pickle in it has no end")


def _interpret(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Interprets one instruction of a pickle; `pickletools` documents them."""
    if name in ("PROTO", "FRAME"):
        return
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name]())
    elif name in _LITERALS:
        stack.append(argument)
    elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo[argument])
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        items = [stack.pop() for _ in range(int(name[-1]))]
        stack.append(tuple(reversed(items)))
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name == "LIST":
        stack.append(_since_mark(stack))
    elif name in ("APPEND", "APPENDS"):
        items = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
        _of_type(stack[-1], list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = _since_mark(stack) if name == "SETITEMS" else [stack.pop() for _ in "kv"][::-1]
        # Hashing other keys, if nested deeply, would overflow the stack.
        if not all(isinstance(key, str | int) for key in items[::2]):
            raise PthError("its pickle has a key that is neither text nor a number")
        _of_type(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
    elif name == "POP":
        stack.pop()
    elif name == "GLOBAL":
        stack.append(_known(_Global(*argument.split(" ", 1))))
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(_known(_Global(_of_type(module, str), _of_type(attribute, str))))
    elif name == "BINPERSID":
        stack.append(_storage(*_of_type(stack.pop(), tuple)))
    elif name == "REDUCE":
        arguments, called = _of_type(stack.pop(), tuple), stack.pop()
        stack.append(_CALLABLE[_known(called)](*arguments))
    elif name == "BUILD":  # the attributes of a state dict: versions of its modules
        stack.pop()
        _of_type(stack[-1], dict)
    else:
        raise PthError(f"its pickle has the instruction {name}, expected tensors only")


_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
# fmt: off
_LITERALS = frozenset((
    "BININT", "BININT1", "BININT2", "INT", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
))
# fmt: on


def _known(name: Any) -> _Global:
    if _of_type(name, _Global) not in _KNOWN:
        raise PthError(
            f"its pickle would run {name.module}.{name.name}, which weights do not need; it may be "
            "harmful: do not load it with other tools either"
        )
    return name


def _of_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PthError(f"its pickle has {type(value).__name__} in place of {kind.__name__}")
    return value


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


Stored = Callable[[_Storage], np.ndarray]


def _read_zip(data: bytes) -> tuple[Any, Stored]:
    """Files since PyTorch 1.6: a zip archive of `data.pkl` and `data/KEY` for each storage."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _ARCHIVE_ERRORS as error:
        raise PthError(f"the archive is damaged: {error}") from error
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in members:
        raise PthError(f"the archive holds no data.pkl, but {sorted(members)[:5]}")

    def member(name: str, expected: int | None = None) -> bytes:
        info = members.get(name)
        if info is None:
            raise PthError(f"the archive holds no {name}")
        if info.file_size > len(data) or expected not in (None, info.file_size):
            raise PthError(f"{name} in the archive has {info.file_size} bytes, expected {expected}")
        try:
            return archive.read(info)
        except _ARCHIVE_ERRORS as error:
            raise PthError(f"{name} in the archive cannot be read: {error}") from error

    if "byteorder" in members and member("byteorder") != b"little":
        raise PthError("its numbers are big-endian, expected little-endian ones")

    def stored(storage: _Storage) -> np.ndarray:
        name, size = f"data/{storage.key}", storage.size * storage.dtype.itemsize
        in_place = _in_place(data, members.get(name), size)
        content = member(name, size) if in_place is None else in_place
        return np.frombuffer(content, storage.dtype)

    return read_pickle(io.BytesIO(member("data.pkl"))), stored


def _in_place(data: bytes, info: zipfile.ZipInfo | None, size: int) -> memoryview | None:
    """The bytes of a member that is stored without compression, not copied; None for any other.

    Raises PthError if they do not have the checksum that the archive states.
    """
    if info is None or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    header = data[info.header_offset : info.header_offset + _LOCAL_HEADER.size]
    if len(header) < _LOCAL_HEADER.size or info.file_size != size:
        return None
    signature, *lengths = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + sum(lengths)
    found = memoryview(data)[start : start + size]
    if signature != b"PK\x03\x04" or len(found) != size:
        return None
    if zlib.crc32(found) != info.CRC:
        raise PthError(f"{info.filename} in the archive is damaged: its checksum differs")
    return found


def _read_legacy(data: bytes) -> tuple[Any, Stored]:
    """Files before PyTorch 1.6: five pickles, then each storage after its size."""
    file = io.BytesIO(data)
    if read_pickle(file) != _LEGACY_MAGIC:
        raise PthError("found a pickle, expected a file that PyTorch has saved")
    read_pickle(file)  # the protocol's version
    system = read_pickle(file)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise PthError("its numbers are big-endian, expected little-endian ones")
    value = read_pickle(file)
    described = {tensor.storage.key: tensor.storage for tensor in _tensors(value).values()}
    found: dict[_Storage, np.ndarray] = {}
    for key in _of_type(read_pickle(file), list):
        storage = described.get(_of_type(key, str))
        if storage is None:
            raise PthError(f"it holds storage {key!r}, which no tensor uses")
        size = storage.size * storage.dtype.itemsize
        count, content = file.read(8), file.read(size)
        if len(content) != size or count != struct.pack("<q", storage.size):
            raise PthError(f"storage {key!r} is truncated or has another size than described")
        found[storage] = np.frombuffer(content, storage.dtype)

    def stored(storage: _Storage) -> np.ndarray:
        if storage not in found:
            raise PthError(f"it does not hold storage {storage.key!r} of {storage.size} numbers")
        return found[storage]

    return value, stored


def _tensors(value: Any) -> dict[str, _Tensor]:
    """The tensors of a state dict; some checkpoints hold it under the key `state_dict`."""
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise PthError(f"it holds a {type(value).__name__}, expected tensors by name")
    return {name: item for name, item in value.items() if isinstance(item, _Tensor)}
