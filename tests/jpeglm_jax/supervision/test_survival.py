"""Runs that are interrupted, hang, cannot write, or share a folder: real processes and signals."""

import os
import random
import resource
import signal
import sys
import time

import pytest

from jpeglm_jax.supervision import preemption, watchdog
from tests.jpeglm_jax.runs import (
    assert_complete,
    assert_same_run,
    command,
    finish,
    latest_step,
    lines,
    run,
    start,
    wait_for_step,
)


def limit_file_size(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_run_is_interrupted_then_meets_a_full_disk_and_ends_the_same(
    digit_shards, straight, tmp_path
):
    """SIGTERM saves the last step; the next save fails and keeps it; the last run continues."""
    process = start(command(digit_shards, tmp_path))
    wait_for_step(process, tmp_path, 70)
    process.send_signal(signal.SIGTERM)
    stdout, stderr, status = finish(process)
    assert status == preemption.STATUS, stdout + stderr
    saved = assert_complete(tmp_path)
    assert f"step {saved} " in stdout and "Traceback" not in stderr
    assert saved >= 70 and saved % 50, "the checkpoint must be that of the interruption"

    # A limit on the size of files simulates the full disk.
    arguments = command(digit_shards, tmp_path, log__tensorboard=False)
    stdout, stderr, status = finish(start(arguments, preexec_fn=limit_file_size(20_000)))
    assert status == 1, stdout + stderr
    # Where several arrays fail at once, asyncio may log those that were not awaited, with
    # tracebacks inside Orbax. One through this project's code would be an uncaught error.
    assert 'train.py", line' not in stderr, stderr
    failed = saved - saved % 50 + 50
    assert f"step {failed} " in stderr and "File too large" in stderr
    assert f"step {saved}." in stderr
    assert latest_step(tmp_path) == saved
    assert lines(tmp_path)[-1]["step"] < failed + 50, "the run must end before the next save"

    run(command(digit_shards, tmp_path))
    assert assert_complete(tmp_path) == 200
    assert_same_run(tmp_path, straight)


def test_sigterm_while_evaluating_evaluates_after_the_restart(digit_shards, tmp_path):
    """The whole eval split is evaluated after every third step; the signal comes meanwhile."""
    changes = {"steps": 12, "evaluate__every": 3, "evaluate__batches": 0, "log__every": 1}
    process = start(command(digit_shards, tmp_path, **changes))
    wait_for_step(process, tmp_path, 3)  # logged before the evaluation of step 3 begins
    process.send_signal(signal.SIGTERM)
    assert finish(process)[2] == preemption.STATUS
    assert latest_step(tmp_path) >= 3
    run(command(digit_shards, tmp_path, **changes))
    found = [(line["step"], name) for line in lines(tmp_path) for name in line]
    for step in range(1, 13):
        assert found.count((step, "train/loss")) == 1
        assert found.count((step, "eval/loss")) == (step % 3 == 0)


def test_sigterm_before_the_first_step_ends_with_the_same_status(digit_shards, tmp_path):
    process = start(command(digit_shards, tmp_path))
    deadline = time.monotonic() + 120
    while not (tmp_path / "lease.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr, status = finish(process)
    assert status == preemption.STATUS, stdout + stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "lease.json").exists()


def test_two_runs_cannot_write_one_folder(digit_shards, straight, tmp_path):
    first = start(command(digit_shards, tmp_path, steps=100_000))
    wait_for_step(first, tmp_path, 7)
    second = start(command(digit_shards, tmp_path))
    stdout, stderr, status = finish(second)
    assert status == 1, stdout + stderr
    assert f"process {first.pid} on" in stderr
    assert "Traceback" not in stderr
    assert first.poll() is None, "the first run must continue"
    first.send_signal(signal.SIGKILL)
    finish(first)
    # A kill leaves the lease behind; on this machine its process is known to have ended.
    third = start(command(digit_shards, tmp_path, steps=100_000))
    while not os.fstat(third.outputs[0].fileno()).st_size:
        assert third.poll() is None, "it ended without a message"
        time.sleep(0.1)
    third.kill()
    stdout = finish(third)[0]
    assert stdout.startswith(f"process {first.pid} on") and "taking over" in stdout


def test_a_hung_run_prints_its_stacks_and_ends(digit_shards, tmp_path):
    """The loader hangs in step 5."""
    code = """
import runpy, threading
from data_pipelines.loading.loader import Batches
real = Batches.__next__
def stuck(self):
    if self.step == 4:  # evaluation reads fewer
        threading.Event().wait()
    return real(self)
Batches.__next__ = stuck
runpy.run_module("jpeglm_jax.train", run_name="__main__", alter_sys=True)
"""
    arguments = command(digit_shards, tmp_path, watchdog=5)
    stdout, stderr, status = finish(start([sys.executable, "-c", code, *arguments[3:]]))
    assert status == watchdog.STATUS, stdout + stderr
    assert "in 5 s (train)" in stderr
    assert "in stuck" in stderr and "in run\n" in stderr


# Many times


BUSY = {"steps": 6000, "checkpoint__every": 20, "evaluate__every": 50, "log__every": 1}
BUSY |= {"sample__every": 100, "sample__num": 8, "sample__batch_size": 8}


def busy(shards, workdir):
    """Trains, evaluates, samples and saves in turns; all its starts share compiled programs."""
    return command(shards, workdir, **BUSY)


def pause(workdir, seconds):
    """Sleeps, but not beyond the end of the run."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if any(line["step"] > BUSY["steps"] - 500 for line in lines(workdir)):
            break
        time.sleep(0.1)


def disturb(process, workdir, chance, number):
    """Sends a signal at a random moment: during start-up, or some steps into the run.

    Returns the exit status.
    """
    deadline = time.monotonic() + 240
    while not (workdir / "lease.json").exists():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if chance.random() < 0.7:
        resumed = max([0, *(line["step"] for line in lines(workdir))])
        wait_for_step(process, workdir, min(resumed + chance.randint(1, 60), BUSY["steps"] - 100))
        pause(workdir, chance.uniform(0, 1))
    else:
        pause(workdir, chance.uniform(0, 10))
    process.send_signal(number)
    return finish(process)[2]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_kills_do_not_change_the_result(digit_shards, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run(busy(digit_shards, straight))
    chance = random.Random(0)
    steps = []
    for _ in range(50):
        process = start(busy(digit_shards, killed))
        assert disturb(process, killed, chance, signal.SIGKILL) == -signal.SIGKILL
        steps.append(max([0, *(line["step"] for line in lines(killed))]))
    run(busy(digit_shards, killed))
    print("killed after the steps", steps)
    assert_same_run(killed, straight)
    assert assert_complete(killed) == BUSY["steps"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_sigterms_leave_twenty_complete_checkpoints(digit_shards, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(busy(digit_shards, straight))
    process = start(busy(digit_shards, stopped))
    wait_for_step(process, stopped, 1)
    chance = random.Random(1)
    steps = []
    for _ in range(20):
        assert disturb(process, stopped, chance, signal.SIGTERM) == preemption.STATUS
        steps.append(assert_complete(stopped))
        process = start(busy(digit_shards, stopped))
    stdout, stderr, status = finish(process, 600)
    assert status == 0, stdout + stderr
    print("saved the steps", steps)
    assert steps == sorted(steps)
    assert_same_run(stopped, straight)
