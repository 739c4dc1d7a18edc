"""Compiled programs that outlive a process."""

from __future__ import annotations

import jax
from etils import epath


def keep_compiled(folder: str, workdir: epath.Path) -> None:
    """Keeps compiled programs for the next start of a run, and for its other processes.

    Args:
      folder: `config.compilation_cache`. "auto" keeps nothing on a CPU, where code is made for the
        instructions of this very processor, while a workdir may move to another.
      workdir: the run's folder.
    """
    if folder == "auto":
        folder = "" if jax.default_backend() == "cpu" else str(workdir / "compiled")
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
