"""The model and everything that runs it: train, generate, compile, convert; `load` for Python.

Importing the package imports nothing else: `load` imports JAX when it is called.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jpeglm_jax.api import Model


def load(workdir: str | os.PathLike[str], step: int | None = None) -> Model:
    """Loads a trained model, to sample, complete and score documents.

      model = jpeglm_jax.load("runs/jpeg-digits")
      samples = model.sample(16, label=3)
      completions = model.complete("photo.jpg", ratio=0.5, num=4)
      nats = model.log_likelihood(["a.jpg", "b.jpg"])

    The weights are the moving average of a run that kept one. They are placed on the devices of
    this process. If nothing of JAX has run yet, the CPU is split into one device per core, as in
    the commands.

    Args:
      workdir: folder of a training run, local or remote (gs://).
      step: of the checkpoint; default the newest.

    Returns:
      See `jpeglm_jax.api.Model`.

    Raises:
      CheckpointError (ValueError): there is no such run or checkpoint, or its parts do not match.
    """
    from jpeglm_jax import api

    return api.load(workdir, step)
