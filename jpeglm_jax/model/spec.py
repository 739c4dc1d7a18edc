"""A model without its weights: its graph, and shapes and shardings of its weights.

Training, generation and the evaluations take a `ModelSpec` and weights as separate values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jpeglm_jax.model.config import ModelConfig
from jpeglm_jax.model.llama import Llama
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.jit import jit_on_mesh
from jpeglm_jax.parallel.sharding import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class ModelSpec:
    """A model as a value that holds no weights; training, sampling and scoring share it.

    Weights ("params") are a nested dict of float32 arrays; `nnx.merge(spec.graph, params)` is the
    model.

    Attributes:
      config: the model's shape.
    """

    config: ModelConfig

    @functools.cached_property
    def _abstract(self) -> tuple[Any, Any, Any]:
        """Graph, shapes and logical axes of the weights, without allocating any."""
        graph, state = nnx.split(nnx.eval_shape(lambda: Llama(self.config, nnx.Rngs(0))))
        axes = jax.tree.map(
            lambda v: v.get_metadata("axes"), state, is_leaf=lambda v: isinstance(v, nnx.Variable)
        )
        return graph, nnx.to_pure_dict(state), nnx.to_pure_dict(axes)

    @property
    def graph(self) -> Any:
        """The model without its weights."""
        return self._abstract[0]

    @property
    def axes(self) -> Any:
        """Logical axes of every weight, a tuple of names each."""
        return self._abstract[2]

    @property
    def abstract_params(self) -> Any:
        """Shapes and dtypes of the weights, without allocating any of them."""
        return self._abstract[1]

    @functools.cached_property
    def num_parameters(self) -> int:
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self.abstract_params))

    def init(self, seed: int | jax.Array) -> Any:
        """Initial weights; a function of the seed alone."""
        return nnx.to_pure_dict(nnx.state(Llama(self.config, nnx.Rngs(jax.random.key(seed)))))

    def logits(self, params: Any, batch: Batch) -> jax.Array:
        """Logits of the next token at every position of a batch, float32 [B, S, V]."""
        model = nnx.merge(self.graph, params)
        return model(batch["tokens"], batch["segments"], batch["positions"])

    def param_shardings(self, mesh: Mesh) -> Any:
        """The sharding of every weight."""
        return sharding.shardings_of(mesh, self.axes)

    def init_on(self, mesh: Mesh, seed: int) -> Any:
        """Initial weights on a mesh, each device computes its own part only."""
        return jit_on_mesh(self.init, mesh, once=True, out_shardings=self.param_shardings(mesh))(
            seed
        )
