"""Every test runs on eight simulated CPU devices, in float32, wherever it runs.

`pytest -m fast` runs the tests that took less than FAST_SECONDS when durations were last recorded,
and those that were not yet there. `pytest -n 2 --record_durations` records them.
"""

import json
import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# Seconds of each test, its fixtures included, that took at least FAST_SECONDS.
DURATIONS = Path(__file__).parent / "durations.json"
FAST_SECONDS = 0.5


def pytest_addoption(parser):
    parser.addoption(
        "--record_durations",
        action="store_true",
        help=f"write how long each test takes to {DURATIONS.name}, from which -m fast chooses",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    known = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    for item in items:
        later = item.get_closest_marker("slow") or item.get_closest_marker("parity")
        if item.nodeid not in known and not later:
            item.add_marker(pytest.mark.fast)


def pytest_terminal_summary(terminalreporter, config):
    """Writes durations, in the process that hears of all tests."""
    if not config.getoption("--record_durations"):
        return
    seconds = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
    slow = {name: round(took, 1) for name, took in seconds.items() if took >= FAST_SECONDS}
    DURATIONS.write_text(json.dumps(slow, indent=0, sort_keys=True) + "\n")
    terminalreporter.write_line(
        f"{len(slow)} of {len(seconds)} tests took {FAST_SECONDS} s or more"
    )


# Fixtures of several folders. What they import starts JAX, so only tests that need it wait for it.


@pytest.fixture(scope="session")
def digit_shards(tmp_path_factory):
    """Prepared digits, without copies."""
    from data_pipelines.prepare import prepare
    from tests.jpeglm_jax.conftest import tiny

    folder = tmp_path_factory.mktemp("digits")
    prepare(
        source="digits",
        representation=tiny().representation.to_dict(),
        out=folder,
        conditional=True,
        eval_fraction=0.15,
        workers=1,
    )
    return str(folder)


@pytest.fixture(scope="session")
def digits_run(digit_shards, tmp_path_factory):
    """The workdir of a run on digits of four steps, with checkpoints 2 and 4."""
    from jpeglm_jax.train import train
    from tests.jpeglm_jax.conftest import tiny

    folder = tmp_path_factory.mktemp("run")
    changes = {"data.source": "digits", "data.shards": digit_shards}
    train(tiny(4, **{"checkpoint.every": 2, "checkpoint.keep": 5}, **changes), folder)
    return folder
