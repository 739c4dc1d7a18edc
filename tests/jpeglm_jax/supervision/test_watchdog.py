"""The watchdog ends a silent process, but not one that compiles or has paused it."""

import subprocess
import sys

import pytest

from jpeglm_jax.supervision import watchdog
from tests.jpeglm_jax.runs import ROOT

CODE = """
import time
from jpeglm_jax.supervision.watchdog import Watchdog
with Watchdog(1.0, compilation_timeout=3.0) as dog:
    heartbeat = dog.heartbeat
    {}
print("ended by itself")
"""


@pytest.mark.parametrize(
    ("work", "ends"),
    [
        ("time.sleep(2.0)", False),  # starting
        ("heartbeat('train'); time.sleep(2.0)", False),  # compiling
        ("heartbeat('train'); heartbeat('train'); time.sleep(30)", True),
        (
            "heartbeat('train'); heartbeat('evaluate'); heartbeat('train'); time.sleep(30)",
            True,
        ),
        ("[(heartbeat('train'), time.sleep(0.2)) for _ in range(8)]", False),
        ("dog.paused().__enter__(); time.sleep(5.0)", False),
    ],
)
def test_a_silent_process_is_ended_and_others_are_not(work, ends):
    found = subprocess.run(
        [sys.executable, "-c", CODE.format(work)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (found.returncode == watchdog.STATUS) == ends, found.stderr
    assert ("in 1 s (train)" in found.stderr) == ends
    assert ("ended by itself" in found.stdout) != ends
