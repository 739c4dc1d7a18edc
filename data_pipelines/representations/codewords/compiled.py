"""What numba compiles; without numba (the extra [fast]) slower code does the same."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import types
from typing import Any


@functools.cache
def has_numba() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def module(name: str) -> types.ModuleType | None:
    """A module whose functions numba compiles; None without numba."""
    return importlib.import_module(name) if has_numba() else None


def jit(function: Any) -> Any:
    """A function that numba compiles when it is first called; the function itself without numba."""
    if not has_numba():
        return function
    return importlib.import_module("numba").njit(cache=True, nogil=True)(function)
