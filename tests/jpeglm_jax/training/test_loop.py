"""The loop: nothing waits, nothing is compiled twice, traces open."""

import errno
import gc
import gzip
import json
import os
import signal

import jax
import pytest

from jpeglm_jax import train as training
from jpeglm_jax.supervision.preemption import STATUS, Interrupted
from jpeglm_jax.train import train
from jpeglm_jax.training.checkpoint import SaveError
from jpeglm_jax.training.evaluation import Evaluator
from jpeglm_jax.training.log import MetricsLog
from jpeglm_jax.training.profiler import Profiler
from tests.jpeglm_jax.conftest import tiny
from tests.jpeglm_jax.runs import latest_step, lines

EVERYTHING = {"evaluate.every": 2, "sample.every": 3, "checkpoint.every": 4}


def compilations(caplog):
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    finished = [text for text in messages if text.startswith("Finished XLA compilation")]
    return {
        name: sum(f"jit({name})" in text for text in finished) for name in ("update", "loss_sums")
    }


def test_steps_are_compiled_once_with_evaluations_samples_and_a_resume(
    digit_shards, tmp_path, caplog, monkeypatch
):
    evaluations = []

    def stop_at_the_second(*arguments, **options):
        evaluations.append(arguments)
        if len(evaluations) == 3:  # the first is before the loop
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    evaluate = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", stop_at_the_second)
    config = tiny(8, **{"data.shards": digit_shards, **EVERYTHING})
    with jax.log_compiles():
        with pytest.raises(Interrupted) as stopped:
            train(config, tmp_path)
        assert stopped.value.code == STATUS
        assert compilations(caplog) == {"update": 1, "loss_sums": 1}
        train(config, tmp_path)
        assert compilations(caplog) == {"update": 1, "loss_sums": 1}
    found = [(line["step"], name) for line in lines(tmp_path) for name in line]
    for step in range(1, 9):
        assert found.count((step, "train/loss")) == 1
        assert found.count((step, "eval/loss")) == (step % 2 == 0)
        assert found.count((step, "samples/valid")) == (step % 3 == 0 or step == 8)
    assert gc.get_freeze_count() == 0, "frozen for the length of a run only"


def test_interrupted_before_the_first_step_and_after_the_last(
    digit_shards, tmp_path, monkeypatch, capsys
):
    """Evaluations 1 and 2 are before the first step of each process, 3 is due at the last step."""
    signals_at, calls = {1, 3}, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) in signals_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    evaluate = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", interrupted)
    every = {"evaluate.every": 4, "sample.every": 4, "checkpoint.every": 4}
    config = tiny(4, **{"data.shards": digit_shards, **every})
    config.compilation_cache = str(tmp_path / "compiled")
    run = tmp_path / "run"

    with pytest.raises(Interrupted):
        train(config, run)
    assert "before the first step" in capsys.readouterr().out
    assert latest_step(run) is None and not lines(run)

    with pytest.raises(Interrupted):
        train(config, run)
    assert "step 4 is kept" in capsys.readouterr().out
    assert latest_step(run) == 4

    evaluated = train(config, run)
    assert evaluated["eval/loss"] > 0
    found = [(line["step"], name) for line in lines(run) for name in line]
    assert found.count((4, "eval/loss")) == found.count((4, "samples/valid")) == 1
    assert (run / "samples" / "step_00000004.png").exists()


def test_a_full_disk_while_sampling_is_named_with_the_newest_checkpoint(
    digit_shards, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(training, "save_grid", full)
    monkeypatch.setattr(MetricsLog, "close", full)  # TensorBoard's last lines do not fit either
    every = {"sample.every": 4, "checkpoint.every": 2}
    with pytest.raises(SaveError, match="No space left on device.* is of step 2"):
        train(tiny(6, **{"data.shards": digit_shards, **every}), tmp_path)
    assert latest_step(tmp_path) == 2
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert not (tmp_path / "lease.json").exists()


def test_metrics_are_read_when_the_next_step_is_under_way(digit_shards, tmp_path, monkeypatch):
    events = []
    numbers = {}

    def compile_train_step(*arguments):
        step = compile_really(*arguments)

        def dispatch(*state_and_batch):
            state, values = step(*state_and_batch)
            numbers[id(values)] = len(numbers) + 1
            kept.append(values)
            events.append(("dispatched", numbers[id(values)]))
            return state, values

        return dispatch

    def device_get(value):
        if id(value) in numbers:
            events.append(("read", numbers[id(value)]))
        return get_really(value)

    kept = []  # so that no identity comes again
    compile_really, get_really = training.compile_train_step, jax.device_get
    monkeypatch.setattr(training, "compile_train_step", compile_train_step)
    monkeypatch.setattr(jax, "device_get", device_get)
    train(tiny(6, **{"data.shards": digit_shards}), tmp_path)
    for step in range(1, 6):
        assert events.index(("read", step)) > events.index(("dispatched", step + 1))
    assert events[-1] == ("read", 6)


def test_a_trace_of_some_steps_can_be_opened(digit_shards, tmp_path):
    config = tiny(6, **{"data.shards": digit_shards})
    train(config, tmp_path, profile="3:5")
    (folder,) = (tmp_path / "tensorboard" / "plugins" / "profile").iterdir()
    (space,) = folder.glob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(space)).planes)
    names = {event.name for plane in planes for line in plane.lines for event in line.events}
    assert any(name.startswith("train") for name in names)
    with gzip.open(folder / "perfetto_trace.json.gz") as file:
        assert json.load(file)["traceEvents"]


@pytest.mark.parametrize("steps", ["5", "5:5", "0:3", "a:b", "7:3"])
def test_steps_to_trace_are_refused_in_another_form(steps, tmp_path):
    with pytest.raises(ValueError, match="expected START:STOP"):
        Profiler(steps, tmp_path)
