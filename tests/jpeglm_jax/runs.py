"""Training runs in processes of their own, and checks of the files that they write."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from jpeglm_jax.training import checkpoint
from jpeglm_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]
TIMINGS = ("perf/tokens_per_second", "perf/mfu", "perf/goodput")


def lines(workdir):
    """metrics.jsonl without the timings and without an unfinished last line."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in found]


def weights(workdir):
    return jax.device_get(checkpoint.load(workdir).params)


def command(shards, workdir, *flags, **changes):
    """A small run of 200 steps; `changes` are of the configuration, `__` standing for a dot."""
    values = {
        "steps": 200,
        "batch_size": 8,
        "seq_len": 80,
        "representation.quality": 5,
        "data.shards": shards,
        "model.layers": 1,
        "model.width": 32,
        "model.ffn": 64,
        "model.head_dim": 8,
        "optimizer.warmup_steps": 10,
        "optimizer.ema": 0.9,
        "log.every": 7,
        "evaluate.every": 60,
        "evaluate.batches": 2,
        "checkpoint.every": 50,
        "sample.every": 0,
        "cpu_devices": 2,
        "compilation_cache": pathlib.Path(shards).parent / "compiled",  # for all runs
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return [
        *(sys.executable, "-m", "jpeglm_jax.train", "--config=configs/jpeg.py"),
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in values.items()),
        *flags,
    ]


def environment(**more):
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | more


def wait_for_step(process, workdir, step, seconds=240):
    """Waits until a run has logged a step; fails if it ends before."""
    deadline = time.monotonic() + seconds
    while max([0, *(line["step"] for line in lines(workdir))]) < step:
        assert process.poll() is None, f"the run ended before step {step}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(arguments, **options):
    """A process whose output goes to files: a full pipe would block it."""
    stdout, stderr = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=stdout, stderr=stderr, **options
    )
    process.outputs = stdout, stderr
    return process


def finish(process, seconds=240):
    """(standard output, standard error, status) of a process when it has ended."""
    try:
        process.wait(seconds)
    finally:
        process.kill()
    texts = []
    for file in process.outputs:
        file.seek(0)
        texts.append(file.read())
        file.close()
    return *texts, process.returncode


def run(arguments, **options):
    stdout, stderr, status = finish(start(arguments, **options))
    assert status == 0, stdout + stderr
    return stdout


def assert_same_run(one, other):
    assert lines(one) == lines(other)
    jax.tree.map(np.testing.assert_array_equal, weights(one), weights(other))


def latest_step(workdir):
    """The step of the newest checkpoint; None if there is none."""
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.latest()


def assert_complete(workdir):
    """Checks that the newest checkpoint can be read and that nothing is half-written."""
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.latest()
        assert checkpoints.meta()["step"] == step
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(weights(workdir)))
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert all(name.isdigit() for name in names), names
    assert not (workdir / "lease.json").exists()
    return step


@contextlib.contextmanager
def count_compilations():
    """A list with an entry for each program that XLA compiles meanwhile."""
    compilations = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
