"""Signals while the main thread runs Python, waits in a computation, or has forked workers."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jpeglm_jax.supervision import preemption

# Prints "ready" and then computes one jitted function for minutes: no Python bytecode runs.
LONG_STEP = """
import jax, jax.numpy as jnp
from jpeglm_jax.supervision.preemption import Interruption

@jax.jit
def step(x, n):
    return jax.lax.fori_loop(0, n, lambda _, x: jnp.sin(x @ x), x)

with Interruption() as interruption, interruption.deferred():
    x = jnp.eye(64)
    step(x, 1).block_until_ready()
    print("ready", flush=True)
    step(x, 2**30).block_until_ready()
    print("finished")
"""

# Its worker is a fork, which gets the same Ctrl-C from the terminal.
WITH_WORKER = """
import os, time
from jpeglm_jax.supervision.preemption import Interruption, Interrupted

with Interruption() as interruption, interruption.deferred():
    child = os.fork()
    if not child:
        time.sleep(120)
        os._exit(0)
    print("ready", flush=True)
    print("worker ended by", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    time.sleep(1)  # a byte that the worker wrote would have ended this process
    interruption.check()
"""

# The worker's first hook: signals arrive before those of the tested module.
SLOW_FORK = """
import os, time
os.register_at_fork(after_in_child=lambda: time.sleep(1))
"""


@pytest.fixture
def start():
    """Starts Python code in a process group of its own and waits until it prints "ready"."""
    started = []

    def begin(code):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_a_long_computation_at_once(start, first):
    process = start(LONG_STEP)
    time.sleep(0.5)
    process.send_signal(first)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)  # the first waits for the end of the step
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == preemption.STATUS_AT_ONCE == 130
    assert not stdout
    assert len(stderr.strip().splitlines()) == 1 and "resumes" in stderr


def test_further_sigterms_wait_for_the_end_of_the_step(start):
    process = start(LONG_STEP)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)


@pytest.mark.parametrize("forking", ["", SLOW_FORK], ids=["forked", "being forked"])
def test_ctrl_c_in_a_terminal_reaches_a_forked_worker_and_counts_once(start, forking):
    process = start(forking + WITH_WORKER)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == preemption.STATUS, stderr
    assert stdout.split() == ["worker", "ended", "by", str(-signal.SIGINT)]


def test_handlers_and_the_wakeup_descriptor_are_restored():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with preemption.Interruption():
        descriptor = signal.set_wakeup_fd(-1)
        assert descriptor != -1
        signal.set_wakeup_fd(descriptor)
        assert signal.getsignal(signal.SIGTERM) != handlers[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert signal.set_wakeup_fd(-1) == -1
