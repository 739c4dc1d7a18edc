"""The watchdog waits for what is compiled and for what takes any time, and for nothing else."""

import subprocess
import sys

import pytest

from jpeglm_jax.supervision import watchdog
from tests.jpeglm_jax.runs import ROOT

CODE = """
import time
from jpeglm_jax.supervision.watchdog import Watchdog
with Watchdog(1.0, compiling=3.0) as dog:
    {}
print("ended by itself")
"""


@pytest.mark.parametrize(
    ("work", "ends"),
    [
        ("time.sleep(2.0)", False),  # starting
        ("dog.alive('train'); time.sleep(2.0)", False),  # compiling
        ("dog.alive('train'); dog.alive('train'); time.sleep(30)", True),
        ("dog.alive('train'); dog.alive('evaluate'); dog.alive('train'); time.sleep(30)", True),
        ("[(dog.alive('train'), time.sleep(0.2)) for _ in range(8)]", False),
        ("dog.asleep().__enter__(); time.sleep(5.0)", False),
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
    assert ("nothing was finished in 1 s (train)" in found.stderr) == ends
    assert ("ended by itself" in found.stdout) != ends
