"""`jax.jit` on a mesh, with the compiler options of its chips; training and generation use it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jpeglm_jax.hardware import chips

# On a CPU random bits take long to compile: with these options a third of the time, and twice the
# time to run.
_LITTLE_OPTIMIZED: dict[str, str | bool | int] = {"xla_backend_optimization_level": 1}


def jit_on_mesh(
    function: Callable[..., Any], mesh: Mesh, *, once: bool = False, **options: Any
) -> Callable[..., Any]:
    """`jax.jit(function, **options)`, traced with `mesh` as the current mesh.

    The compiler options are those of the mesh's chip, see `hardware.chips`. The attribute `jitted`
    of the result is the jitted function itself, for `lower`.

    Args:
      function, options: see `jax.jit`.
      mesh: of the devices.
      once: whether it runs once only, as what makes initial weights: a CPU's program is then
        optimized less.
    """
    device = mesh.devices.flat[0]
    known = chips.chip(device.device_kind)
    compiler_options = known.options if known else None
    if once and device.platform == "cpu":
        compiler_options = _LITTLE_OPTIMIZED
    jitted = jax.jit(function, compiler_options=compiler_options, **options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return jitted(*args)

    call.jitted = jitted  # type: ignore[attr-defined]
    return call
