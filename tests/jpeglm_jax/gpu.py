"""The train step lowered for GPUs that are not there, and the attention kernels in it."""

import re

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jpeglm_jax.compilation.report import abstract_batch
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training.step import TrainStep

H100 = "NVIDIA H100 80GB HBM3"
A100 = "NVIDIA A100-SXM4-80GB"


def mesh_of(devices=1, kind=H100):
    """A mesh of GPUs of a kind, split by fsdp."""
    sizes = tuple(devices if axis == "fsdp" else 1 for axis in sharding.AXES)
    return AbstractMesh(
        sizes,
        sharding.AXES,
        axis_types=(AxisType.Auto,) * len(sizes),
        abstract_device=AbstractDevice(device_kind=kind, num_cores=None, platform="gpu"),
    )


def lowered(config, devices=1, kind=H100, vocab_size=320):
    """The text of the train step of a configuration, lowered for CUDA on a CPU."""
    model = model_config(config.model, vocab_size, "gpu")
    step = TrainStep(ModelSpec(model), config.optimizer, config.steps, 1)
    mesh = mesh_of(devices, kind)
    state = step.state_shardings(mesh)
    jitted = jax.jit(
        step.update,
        in_shardings=(state, sharding.batch_shardings(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jitted.trace(step.abstract_state(), abstract_batch(config))
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def calls(text, pattern):
    """How often a program calls what matches, functions that are called counted in full.

    The body of a loop over layers counts once.
    """
    bodies = dict(re.findall(r"func\.func \w+ @([\w.]+)(.*?)(?=func\.func|\Z)", text, re.S))

    def count(name):
        body = bodies[name]
        own = len(re.findall(pattern, body))
        return own + sum(
            count(called) for called in re.findall(r"(?<!custom_)call @([\w.]+)\(", body)
        )

    return count("main")
