"""Checkpoints are independent of the topology: 8 devices, 4, 1 and back."""

import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel.sharding import make_mesh
from jpeglm_jax.training.checkpoint import Checkpoints
from jpeglm_jax.training.step import TrainStep, compile_init
from tests.jpeglm_jax.conftest import tiny
from tests.jpeglm_jax.runs import (
    ROOT,
    assert_complete,
    command,
    environment,
    finish,
    lines,
    run,
    start,
    wait_for_step,
)


def test_a_state_restored_on_8_4_1_and_8_devices_is_unchanged(tmp_path):
    config = tiny(**{"optimizer.ema": 0.9})
    model = model_config(config.model, 40, "cpu")
    train_step = TrainStep(ModelSpec(model), config.optimizer, config.steps, 1)
    meshes = [
        make_mesh({"fsdp": 8}),
        make_mesh({"fsdp": 2, "tensor": 2}, devices=jax.devices()[:4]),
        make_mesh({}, devices=jax.devices()[:1]),
        make_mesh({"replica": 2, "fsdp": 4}),
    ]
    state = compile_init(train_step, meshes[0])(0)
    expected = jax.device_get(state)
    for number, mesh in enumerate(meshes[1:], 1):
        with Checkpoints(tmp_path, config.checkpoint) as checkpoints:
            checkpoints.save(number, state, {"step": number})
        where = train_step.state_shardings(mesh)
        with Checkpoints(tmp_path) as checkpoints:
            state = checkpoints.restore(number, train_step.abstract_state(), where)
        placed = jax.tree.map(
            lambda x, there: x.sharding.is_equivalent_to(there, x.ndim), state, where
        )
        assert all(jax.tree.leaves(placed))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_resumes_on_4_devices_then_1_then_8_and_generate_reads_it_with_1(
    digit_shards, tmp_path
):
    changes = {"mesh__replica": 1, "mesh__fsdp": -1, "log__every": 5}
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    run(command(digit_shards, straight, cpu_devices=8, **changes))
    for devices in (8, 4, 1):
        process = start(command(digit_shards, moved, cpu_devices=devices, **changes))
        resumed = max([0, *(line["step"] for line in lines(moved))])
        wait_for_step(process, moved, resumed + 30)
        process.send_signal(signal.SIGTERM)
        assert finish(process)[2] == 75
        assert_complete(moved)
    run(command(digit_shards, moved, cpu_devices=8, **changes))
    here, there = lines(moved), lines(straight)
    assert [line["step"] for line in here] == [line["step"] for line in there]
    for ours, theirs in zip(here, there, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)

    out = tmp_path / "samples"
    generate = [sys.executable, "-m", "jpeglm_jax.generate", f"--workdir={moved}"]
    subprocess.run([*generate, f"--out={out}", "--num=2"], cwd=ROOT, env=environment(), check=True)
    assert (out / "grid.png").exists()
