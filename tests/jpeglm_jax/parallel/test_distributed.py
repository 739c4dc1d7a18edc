"""A run in two processes: the same losses, interrupted together, resumed by one process."""

import io
import re
import signal
import socket

import jax
import numpy as np
import pytest

from jpeglm_jax.parallel import distributed
from jpeglm_jax.parallel.distributed import LabelledLines, StartUpError
from jpeglm_jax.supervision import preemption
from tests.jpeglm_jax.runs import (
    assert_complete,
    command,
    finish,
    latest_step,
    lines,
    run,
    start,
    wait_for_step,
    weights,
)


def start_two(shards, workdir):
    """One device in each of two processes, connected by gloo; `command` has two in one process."""
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
def test_two_processes_are_interrupted_and_killed_and_one_resumes(digit_shards, straight, tmp_path):
    # SIGTERM to one: both save the same step.
    two = start_two(digit_shards, tmp_path)
    try:
        wait_for_step(two[0], tmp_path, 56)
        two[1].send_signal(signal.SIGTERM)
    finally:
        ended = end(two)
    assert [status for *_, status in ended] == [preemption.STATUS] * 2, ended
    outputs = [output for output, *_ in ended]
    step = assert_complete(tmp_path)
    assert f"step {step} " in outputs[0]
    assert "step" not in outputs[1], "only the main process prints"
    printed = [line for line in outputs[0].splitlines() if not line.startswith("[Gloo]")]  # by C++
    assert printed
    for line in printed:
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ process 0: ", line)

    # Two resume, and are killed.
    two = start_two(digit_shards, tmp_path)
    try:
        wait_for_step(two[0], tmp_path, max(step + 7, 105))
    finally:
        for process in two:
            process.send_signal(signal.SIGKILL)
        end(two)
    assert latest_step(tmp_path) >= step

    # One resumes and reaches the same end as a run in one process.
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


def test_an_error_of_the_main_process_ends_the_others(digit_shards, tmp_path):
    held = start(command(digit_shards, tmp_path, steps=100_000))
    try:
        wait_for_step(held, tmp_path, 7)
        ended = end(start_two(digit_shards, tmp_path))
    finally:
        held.kill()
        finish(held)
    assert [status for *_, status in ended] == [1, 1]
    assert "FolderInUse" in ended[0][1]
    (sentence,) = [line for line in ended[1][1].splitlines() if "MainProcessError" in line]
    assert "Z process 1: " in sentence and "process 0 failed" in sentence


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"coordinator": "host:1"}, "coordinator is 'host:1', num_processes None"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "process_id is 2; .* = 1"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
    ],
)
def test_incomplete_settings_are_refused(settings, found):
    with pytest.raises(StartUpError, match=found):
        distributed.start(**settings)


def test_a_variable_that_is_not_a_number_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "four")
    with pytest.raises(StartUpError, match="JAX_NUM_PROCESSES is 'four'"):
        distributed.start()


def test_each_line_is_labelled_once_however_it_is_written():
    stream = io.StringIO()
    labelled = LabelledLines(stream, 3)
    print("one", "two", file=labelled)
    print("three\nfour\n\nfive", end="", file=labelled)
    print(" six", file=labelled)
    labelled.flush()
    labels = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ process 3: ", "@", stream.getvalue())
    assert labels == "@one two\n@three\n@four\n@\n@five six\n"


def test_without_settings_nothing_is_started():
    distributed.start()
    assert not jax.distributed.is_initialized()
