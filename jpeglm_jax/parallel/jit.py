"""`jax.jit` on a mesh, with the compiler options of its chips; training and generation use it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jpeglm_jax.hardware import chips


def jit_on_mesh(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Callable[..., Any]:
    """`jax.jit(function, **options)`, traced with `mesh` as the current mesh.

    The compiler options are those of the mesh's chip, see `hardware.chips`. The attribute `jitted`
    of the result is the jitted function itself, for `lower`.
    """
    known = chips.chip(mesh.devices.flat[0].device_kind)
    jitted = jax.jit(function, compiler_options=known.options if known else None, **options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return jitted(*args)

    call.jitted = jitted  # type: ignore[attr-defined]
    return call
