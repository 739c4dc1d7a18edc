"""Likelihood of the eval split during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from data_pipelines.loading.loader import Loader
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.sharding import BATCH_AXES
from jpeglm_jax.training.metrics import likelihood


class Evaluator:
    """Computes the metrics `eval/*`.

    Args:
      eval_step: (params, batch) -> sums over the batch, see `TrainStep.loss_sums`.
      loader: of the eval split.
      mesh: where the weights lie.
      max_batches: batches to use, the first ones; 0: all.
      check: called before each batch.
    """

    def __init__(
        self,
        eval_step: Callable[..., Mapping[str, jax.Array]],
        loader: Loader,
        mesh: Mesh,
        max_batches: int,
        check: Callable[[], None],
    ):
        self._eval_step, self._loader = eval_step, loader
        self._rows = sharding.named(mesh, *BATCH_AXES)
        self._max_batches, self._check = max_batches, check

    def __call__(self, params: Any, max_batches: int | None = None) -> dict[str, float]:
        """Likelihood of the eval split, every target weighing the same.

        Args:
          params: weights on the mesh.
          max_batches: instead of the evaluator's own.
        """
        limit = self._max_batches if max_batches is None else max_batches
        sums: dict[str, float] = {}
        for number, batch in enumerate(self._loader.eval_batches(sharding=self._rows)):
            if limit and number == limit:
                break
            self._check()
            for name, value in jax.device_get(self._eval_step(params, batch)).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        representation = self._loader.representation
        found = likelihood(sums, representation.medium, representation.num_dimensions)
        return {f"eval/{name}": value for name, value in found.items()}
