"""A run has the same losses on any mesh; impossible meshes are refused by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeglm_jax.model.config import REMAT_POLICIES, model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.sharding import (
    AXES,
    BATCH_AXES,
    MeshError,
    batch_shardings,
    make_mesh,
    mesh_shape,
)
from jpeglm_jax.training.step import TrainStep, check_mesh, compile_init, compile_train_step
from tests.jpeglm_jax.conftest import tiny
from tests.jpeglm_jax.runs import count_compilations

VOCAB = 40
MESHES = [
    {"replica": 8},
    {"fsdp": 8},
    {"fsdp": 2, "sequence": 4},
    {"fsdp": 2, "tensor": 4},
    {"replica": 2, "fsdp": 2, "sequence": 2},
    {"fsdp": 2, "sequence": 2, "tensor": 2},
]


def train_step_of(config):
    model = model_config(config.model, VOCAB, "cpu")
    return TrainStep(ModelSpec(model), config.optimizer, config.steps, 1)


def batches(config):
    """Packed rows of two documents that can be learned: a token depends on the one before."""
    random = np.random.RandomState(0)
    rows, length = config.batch_size, config.seq_len
    while True:
        start = random.randint(0, VOCAB, (rows, 1))
        tokens = (start + np.cumsum(random.randint(1, 4, (rows, length)), 1)) % VOCAB
        segments = np.repeat([[1, 2, 0]], rows, 0).repeat([30, 45, 5], axis=1)
        positions = np.concatenate([np.arange(30), np.arange(45), np.zeros(5, int)])
        yield {
            "tokens": tokens.astype(np.int32),
            "targets": np.roll(tokens, -1, 1).astype(np.int32),
            "segments": segments.astype(np.int32),
            "positions": np.repeat(positions[None], rows, 0).astype(np.int32),
            "weights": (segments > 0).astype(np.float32),
            "codec_bytes": (segments > 0).astype(np.float32),
        }


def run(config, sizes, devices=8, slices=1, state=None):
    """Losses and gradient norms of every step.

    Args:
      state: initial state on the host; by default it is initialised on the mesh.

    Returns:
      float [steps, 2], the initial state on the host, and the number of compilations per step.
    """
    mesh = make_mesh(sizes, devices=jax.devices()[:devices], slices=slices)
    train_step = train_step_of(config)
    check_mesh(config, train_step.model.config, mesh)
    if state is None:
        state = compile_init(train_step, mesh)(config.seed)
    else:
        state = jax.device_put(state, train_step.state_shardings(mesh))
    initial = jax.device_get(state)
    step, where = compile_train_step(train_step, mesh), batch_shardings(mesh)
    numbers, compiled = [], []
    for _, batch in zip(range(config.steps), batches(config), strict=False):
        with count_compilations() as compilations:
            state, metrics = step(state, jax.device_put(batch, where))
        compiled.append(len(compilations))
        metrics = jax.device_get(metrics)
        numbers.append((metrics["nll"] / metrics["tokens"], metrics["grad_norm"]))
    return np.array(numbers), initial, compiled


def test_initial_weights_do_not_depend_on_how_they_are_compiled():
    config = tiny(1)
    train_step = train_step_of(config)
    mesh = make_mesh({}, devices=jax.devices()[:1])
    fast, slow = compile_init(train_step, mesh)(3), jax.jit(train_step.init)(3)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(fast), jax.device_get(slow))


@pytest.fixture(scope="module", params=[8, pytest.param(100, marks=pytest.mark.slow)])
def steps(request):
    """Length of the compared runs: a few steps, and many as a slow test."""
    return request.param


@pytest.fixture(scope="module")
def alone(steps):
    numbers, initial, compiled = run(tiny(steps), {}, devices=1)
    assert numbers[-1, 0] < numbers[0, 0], "the run must learn something"
    return numbers, initial, compiled


@pytest.mark.parametrize(
    "sizes", MESHES, ids=lambda sizes: "-".join(f"{axis}{n}" for axis, n in sizes.items())
)
def test_losses_and_initial_weights_do_not_depend_on_the_mesh(alone, steps, sizes):
    numbers, initial, _ = run(tiny(steps), sizes)
    jax.tree.map(np.testing.assert_array_equal, initial.params, alone[1].params)
    np.testing.assert_allclose(numbers, alone[0], rtol=1e-5)


def test_a_split_sequence_is_never_gathered_with_its_whole_width():
    config = tiny(**{"model.remat": "full"})
    mesh, train_step = make_mesh({"fsdp": 2, "sequence": 4}), train_step_of(config)
    step, batch = compile_train_step(train_step, mesh), next(batches(config))
    with jax.set_mesh(mesh):
        text = step.jitted.lower(train_step.abstract_state(), batch).compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
    assert gathered and " all-to-all(" in text
    for shape in gathered:
        assert not {config.seq_len, config.model.width} <= set(map(int, shape.split(",")))


def test_replicas_in_several_slices_change_nothing(alone, steps):
    numbers, _, _ = run(tiny(steps), {"replica": 2, "fsdp": 4}, slices=2, state=alone[1])
    np.testing.assert_allclose(numbers, alone[0], rtol=1e-5)


@pytest.mark.parametrize("policy", [name for name in REMAT_POLICIES if name != "none"])
def test_the_remat_policy_changes_nothing(alone, steps, policy):
    config = tiny(steps, **{"model.remat": policy})
    numbers, _, _ = run(config, {"fsdp": 2, "tensor": 2}, devices=4, state=alone[1])
    np.testing.assert_allclose(numbers, alone[0], rtol=1e-5)


def test_attention_in_chunks_changes_nothing(alone, steps):
    config = tiny(steps, **{"model.attention": "chunked", "model.remat": "full"})
    numbers, _, _ = run(config, {"fsdp": 4, "sequence": 2}, state=alone[1])
    np.testing.assert_allclose(numbers, alone[0], rtol=1e-5)


def test_accumulation_changes_nothing_but_memory(alone, steps):
    config = tiny(steps, **{"optimizer.grad_accum_steps": 4})
    numbers, _, _ = run(config, {"fsdp": 2}, devices=2, state=alone[1])
    np.testing.assert_allclose(numbers, alone[0], rtol=1e-5)


def test_a_step_is_compiled_once(alone):
    first, *others = alone[2]
    assert first > 0 and not any(others)


def test_every_weight_is_split_over_fsdp_but_norms():
    mesh = make_mesh({"fsdp": 8})
    where = train_step_of(tiny()).state_shardings(mesh)
    split = {
        jax.tree_util.keystr(path, simple=True, separator="/"): "fsdp" in str(leaf.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(where.params)
    }
    assert {name for name, is_split in split.items() if not is_split} == {
        "blocks/attention_norm/scale",
        "blocks/ffn_norm/scale",
        "norm/scale",
    }


def test_moments_have_the_shardings_of_their_weights():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    where = train_step_of(tiny()).state_shardings(mesh)
    specs = {str(leaf.spec) for leaf in jax.tree.leaves(where.opt_state)}
    assert {str(leaf.spec) for leaf in jax.tree.leaves(where.params)} <= specs


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ({"fsdp": 3}, "3 devices, found 8"),
        ({"fsdp": -1, "tensor": 3}, "mesh.fsdp is -1, .* 3 devices"),
        ({"fsdp": -1, "tensor": -1}, "fsdp and tensor"),
        ({"fsdp": 0}, "mesh.fsdp is 0"),
        ({"data": 8}, r"unknown axes \['data'\]"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, found):
    with pytest.raises(MeshError, match=found):
        mesh_shape(sizes, 8)


@pytest.mark.parametrize(
    ("sizes", "change", "name"),
    [
        ({"fsdp": 8}, {"batch_size": 12}, "batch_size"),
        ({"tensor": 8}, {}, "model.heads = 4 is split 8 ways, mesh.tensor x mesh.sequence"),
        ({"tensor": 4, "sequence": 2}, {}, "model.kv_heads = 4 is split 8 ways"),
        ({"fsdp": 2, "sequence": 4}, {"seq_len": 81}, "seq_len = 81"),
        ({"fsdp": 8}, {"model.width": 36}, "model.width = 36"),
        ({"fsdp": 2}, {"optimizer.grad_accum_steps": 3, "mesh.fsdp": 1}, "grad_accum_steps"),
    ],
)
def test_a_split_that_does_not_divide_is_refused_by_name(sizes, change, name):
    config = tiny(**change)
    mesh = make_mesh({"replica": -1, **sizes} if "replica" not in sizes else sizes)
    with pytest.raises(MeshError, match=name):
        check_mesh(config, train_step_of(config).model.config, mesh)


def test_slices_divide_the_replicas():
    with pytest.raises(MeshError, match="mesh.replica is 1, .* 2 slices"):
        make_mesh({"fsdp": 8}, slices=2)


def test_without_a_mesh_constrain_returns_its_argument():
    x = jnp.ones((2, 3))
    assert sharding.constrain(x, *BATCH_AXES) is x


def test_a_mesh_keeps_the_order_of_simulated_devices():
    mesh = make_mesh({"replica": 2, "fsdp": 4})
    assert tuple(mesh.axis_names) == AXES
    assert [d.id for d in mesh.devices.flat] == list(range(8))
