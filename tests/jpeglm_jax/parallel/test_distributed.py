"""Two processes are one run: the same losses, stopped together, gone on with by one."""

import signal
import socket

import jax
import numpy as np
import pytest

from jpeglm_jax.parallel import distributed
from jpeglm_jax.parallel.distributed import StartUpError
from jpeglm_jax.supervision import preemption
from jpeglm_jax.training.checkpoint import Checkpoints
from tests.jpeglm_jax.runs import (
    assert_complete,
    command,
    finish,
    lines,
    run,
    start,
    wait_for_step,
    weights,
)


def start_two(shards, workdir):
    """One device in each of two processes, which talk by gloo; as `command` has two in one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    return [
        start(
            command(
                shards,
                workdir,
                f"--coordinator={coordinator}",
                "--num_processes=2",
                f"--process_id={number}",
                cpu_devices=1,
            )
        )
        for number in range(2)
    ]


def end(processes):
    return [finish(process) for process in processes]


@pytest.mark.timeout(900)
def test_two_processes_are_stopped_killed_and_gone_on_with_by_one(digit_shards, straight, tmp_path):
    # SIGTERM to one: both keep the same step.
    two = start_two(digit_shards, tmp_path)
    try:
        wait_for_step(two[0], tmp_path, 56)
        two[1].send_signal(signal.SIGTERM)
    finally:
        ended = end(two)
    assert [status for *_, status in ended] == [preemption.STATUS] * 2, ended
    said = [output for output, *_ in ended]
    step = assert_complete(tmp_path)
    assert f"interrupted: step {step} is kept" in said[0]
    assert "step" not in said[1], "only the main process speaks"

    # Two go on, and are killed.
    two = start_two(digit_shards, tmp_path)
    try:
        wait_for_step(two[0], tmp_path, max(step + 7, 105))
    finally:
        for process in two:
            process.send_signal(signal.SIGKILL)
        end(two)
    assert Checkpoints(tmp_path).latest() >= step

    # One goes on to the end, which is that of a run that was always one.
    run(command(digit_shards, tmp_path))
    here, there = lines(tmp_path), lines(straight)
    assert [line["step"] for line in here] == [line["step"] for line in there]
    for ours, theirs in zip(here, there, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        weights(tmp_path),
        weights(straight),
    )


def test_a_mistake_of_the_main_process_ends_the_others_too(digit_shards, tmp_path):
    held = start(command(digit_shards, tmp_path, steps=100_000))
    try:
        wait_for_step(held, tmp_path, 7)
        ended = end(start_two(digit_shards, tmp_path))
    finally:
        held.kill()
        finish(held)
    assert [status for *_, status in ended] == [1, 1]
    assert "is being written by process" in ended[0][1]
    assert "process 0 has given up before the first step" in ended[1][1]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"coordinator": "host:1"}, "expected all three"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "expected 0 to .* = 1"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "expected HOST:PORT"),
    ],
)
def test_half_of_what_is_needed_is_refused(given, sentence):
    with pytest.raises(StartUpError, match=sentence):
        distributed.start(**given)


def test_a_variable_that_is_no_number_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "four")
    with pytest.raises(StartUpError, match="JAX_NUM_PROCESSES is 'four'"):
        distributed.start()


def test_alone_nothing_is_started():
    distributed.start()
    assert not jax.distributed.is_initialized()
