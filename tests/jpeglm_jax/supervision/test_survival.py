"""Runs that are told to stop, hang, cannot write, or share a folder: real processes and signals."""

import os
import random
import resource
import signal
import sys
import time

import pytest

from jpeglm_jax.supervision import preemption, watchdog
from jpeglm_jax.training.checkpoint import Checkpoints
from tests.jpeglm_jax.runs import (
    assert_complete,
    assert_same_run,
    command,
    finish,
    lines,
    run,
    start,
    wait_for_step,
)


def test_sigterm_keeps_the_last_step_and_the_run_goes_on_to_the_same_end(
    digit_shards, straight, tmp_path
):
    process = start(command(digit_shards, tmp_path))
    wait_for_step(process, tmp_path, 70)
    process.send_signal(signal.SIGTERM)
    said, complained, status = finish(process)
    assert status == preemption.STATUS, said + complained
    step = assert_complete(tmp_path)
    assert f"interrupted: step {step} is kept" in said and "Traceback" not in complained
    assert step >= 70 and step % 50, "it must be the interruption that saved"
    run(command(digit_shards, tmp_path))
    assert_same_run(tmp_path, straight)


def test_sigterm_while_evaluating_evaluates_after_the_restart(digit_shards, tmp_path):
    """The whole held-out set is evaluated after every third step: that is where it comes."""
    changes = {"steps": 12, "evaluate__every": 3, "evaluate__batches": 0, "log__every": 1}
    process = start(command(digit_shards, tmp_path, **changes))
    wait_for_step(process, tmp_path, 3)  # logged before the evaluation of step 3 begins
    process.send_signal(signal.SIGTERM)
    assert finish(process)[2] == preemption.STATUS
    assert Checkpoints(tmp_path).meta()["step"] >= 3
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
    said, complained, status = finish(process)
    assert status == preemption.STATUS, said + complained
    assert "Traceback" not in complained
    assert not (tmp_path / "lease.json").exists()


def test_two_runs_cannot_write_one_folder(digit_shards, straight, tmp_path):
    first = start(command(digit_shards, tmp_path, steps=100_000))
    wait_for_step(first, tmp_path, 7)
    second = start(command(digit_shards, tmp_path))
    said, complained, status = finish(second)
    assert status == 1, said + complained
    assert f"is being written by process {first.pid} on" in complained
    assert "Traceback" not in complained
    assert first.poll() is None, "the first must not be disturbed"
    first.send_signal(signal.SIGKILL)
    finish(first)
    # A kill leaves the lease behind; this machine can see that its process is gone.
    third = start(command(digit_shards, tmp_path, steps=100_000))
    while not os.fstat(third.outputs[0].fileno()).st_size:
        assert third.poll() is None, "it ended without a word"
        time.sleep(0.1)
    third.kill()
    said = finish(third)[0]
    assert said.startswith(f"process {first.pid} on") and "cannot be seen" not in said


def test_a_hung_run_shows_its_stacks_and_ends(digit_shards, tmp_path):
    """The loader waits for ever in step 5."""
    code = """
import sys, threading
from data_pipelines.loading.loader import Batches
real = Batches.__next__
def stuck(self):
    if self.step == 4 and self._num_steps is None:
        threading.Event().wait()
    return real(self)
Batches.__next__ = stuck
from absl import flags
from data_pipelines.utils import command
from jpeglm_jax import train
train._define_flags()
command.run(train.main)
"""
    arguments = command(digit_shards, tmp_path, watchdog=5)
    said, complained, status = finish(start([sys.executable, "-c", code, *arguments[3:]]))
    assert status == watchdog.STATUS, said + complained
    assert "watchdog: nothing was finished in 5 s (train)" in complained
    assert "in stuck" in complained and "in run\n" in complained


def limit_file_size(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_without_room_keeps_the_last_good_checkpoint_and_says_so(digit_shards, tmp_path):
    """A limit on the size of files, set after a first checkpoint, stands for the full disk."""
    run(command(digit_shards, tmp_path, steps=50))
    arguments = command(digit_shards, tmp_path, log__tensorboard=False, compilation_cache="")
    said, complained, status = finish(start(arguments, preexec_fn=limit_file_size(20_000)))
    assert status == 1, said + complained
    # Where several arrays failed at once, asyncio may log those that nobody waited for, with their
    # tracebacks inside Orbax. A traceback through this project's code would be an error not caught.
    assert 'train.py", line' not in complained, complained
    assert "the checkpoint of step 100" in complained and "File too large" in complained
    assert "The newest complete checkpoint is of step 50. Make room" in complained
    assert Checkpoints(tmp_path).latest() == 50
    assert lines(tmp_path)[-1]["step"] < 150, "it must not wait for the next save"
    run(command(digit_shards, tmp_path))
    assert assert_complete(tmp_path) == 200


# Many times over


BUSY = {"steps": 6000, "checkpoint__every": 20, "evaluate__every": 50, "log__every": 1}
BUSY |= {"sample__every": 100, "sample__num": 8, "sample__batch_size": 8}


def busy(shards, workdir):
    """Trains, evaluates, samples and saves in turns; compiles once for all its starts."""
    return command(shards, workdir, **BUSY)


def pause(workdir, seconds):
    """Sleeps, but not until the run has come to its end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if any(line["step"] > BUSY["steps"] - 500 for line in lines(workdir)):
            break
        time.sleep(0.1)


def disturb(process, workdir, chance, number):
    """Sends a signal at a random moment: of starting, or some way into the run.

    Returns the exit status.
    """
    deadline = time.monotonic() + 240
    while not (workdir / "lease.json").exists():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if chance.random() < 0.7:
        begun = max([0, *(line["step"] for line in lines(workdir))])
        wait_for_step(process, workdir, min(begun + chance.randint(1, 60), BUSY["steps"] - 100))
        pause(workdir, chance.uniform(0, 1))
    else:
        pause(workdir, chance.uniform(0, 10))
    process.send_signal(number)
    return finish(process)[2]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_kills_change_no_bit(digit_shards, tmp_path):
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
    said, complained, status = finish(process, 600)
    assert status == 0, said + complained
    print("kept the steps", steps)
    assert steps == sorted(steps)
    assert_same_run(stopped, straight)
