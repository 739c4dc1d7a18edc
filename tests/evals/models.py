"""Models that have learned nothing, made in a moment: their likelihoods are as exact as any."""

import functools

import jax

from data_pipelines import representations
from jpeglm_jax.parallel.sharding import make_mesh
from jpeglm_jax.training.checkpoint import TrainedModel
from jpeglm_jax.training.step import Recipe, compile_init, model_config
from tests.jpeglm_jax.conftest import tiny

DIGITS = {"size": 16, "mode": "L", "quality": 5, "strip": "header"}


@functools.cache
def untrained(row_length=80, devices=1, num_labels=10, **options):
    """A model of digits, or of the JPEG files that the options describe."""
    config = tiny(3, row_length=row_length)
    representation = representations.make("jpeg", num_labels=num_labels, **(options or DIGITS))
    model = model_config(config, representation.vocab_size, "cpu")
    recipe = Recipe(model, config.optimizer, 3, representation.eos, representation.byte_lengths)
    mesh = make_mesh({"fsdp": -1}, devices=jax.devices()[:devices])
    params = compile_init(recipe, mesh)(1).params
    return TrainedModel(config, representation, recipe, mesh, params, 3)
