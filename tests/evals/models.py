"""Untrained models, for tests that need any model."""

import functools

import jax

from data_pipelines import representations
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel.sharding import make_mesh
from tests.jpeglm_jax.conftest import tiny

DIGITS = {"size": 16, "mode": "L", "quality": 5, "strip": "header"}


@functools.cache
def untrained(seq_len=80, devices=1, num_labels=10, **options):
    """An untrained model of digits, or of JPEG files with the given options."""
    config = tiny(3, seq_len=seq_len)
    representation = representations.make("jpeg", num_labels=num_labels, **(options or DIGITS))
    model = model_config(config.model, representation.vocab_size, "cpu")
    spec = ModelSpec(model)
    mesh = make_mesh({"fsdp": -1}, devices=jax.devices()[:devices])
    params = spec.init_on(mesh, 1)
    return TrainedModel(config, representation, spec, mesh, params, 3)
