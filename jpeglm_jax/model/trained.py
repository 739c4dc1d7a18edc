"""A trained model in use: weights on a mesh, with the configuration and representation of its run.

`training.checkpoint.load` makes one from a run's folder; generation and the evaluations take it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.representations.base import Representation
from jpeglm_jax.model.identity import weights_digest
from jpeglm_jax.model.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Everything needed to use the weights of a run.

    Attributes:
      config: the run's configuration.
      representation: what the tokens mean.
      spec: the model without its weights.
      mesh: where the weights lie.
      params: the weights, or their moving average where the run kept one.
      step: of the checkpoint.
      workdir: of the run; None for a model that is of no run.
    """

    config: ConfigDict
    representation: Representation
    spec: ModelSpec
    mesh: Mesh
    params: Any
    step: int
    workdir: str | None = None

    @functools.cached_property
    def weights_digest(self) -> str:
        """16 hex digits that other weights do not share, see `identity.weights_digest`."""
        return weights_digest(self.params)
