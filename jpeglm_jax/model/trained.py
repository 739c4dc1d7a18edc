"""A trained model in use: weights on a mesh, with the configuration and representation of its run.

`training.checkpoint.load` makes one from a run's folder; generation and the evaluations take it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
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
      longest_document: positions of the longest document of its run, with start and end token; None
        where it is not known, as of converted weights.
      workdir: of the run; None for a model that is of no run.
    """

    config: ConfigDict
    representation: Representation
    spec: ModelSpec
    mesh: Mesh
    params: Any
    step: int
    longest_document: int | None = None
    workdir: str | None = None

    def sampling_len(self, prompts: Sequence[np.ndarray], *, other_size: bool = False) -> int:
        """The sequence length to continue some prompts with: the limit of a document.

        Samples from start tokens get the length of the longest document of the run: a row of
        training holds several documents, and every position of the cache costs time in every step.
        A longer prompt, or an image of another size, may need more than any document of the run.

        Args:
          prompts: integer [n] each, with the start token.
          other_size: whether images of a size that the run need not have had are asked for.
        """
        of_the_run = not other_size and all(len(prompt) == 1 for prompt in prompts)
        whole: int = self.config.seq_len
        return self.longest_document or whole if of_the_run else whole

    @functools.cached_property
    def weights_digest(self) -> str:
        """16 hex digits that other weights do not share, see `identity.weights_digest`."""
        return weights_digest(self.params)
