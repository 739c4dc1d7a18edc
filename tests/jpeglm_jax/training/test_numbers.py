"""Numbers of a configuration are checked before any work; a run may be as short as it likes."""

import math

import pytest

from configs import avc, jpeg
from jpeglm_jax.train import train
from jpeglm_jax.training import messages, optimizer
from jpeglm_jax.training.checkpoint import CheckpointError, Checkpoints
from jpeglm_jax.training.loop import Duties, Duty
from jpeglm_jax.training.resume import check_numbers
from tests.jpeglm_jax.conftest import tiny
from tests.jpeglm_jax.runs import lines

PRESETS = [(module, preset) for module in (jpeg, avc) for preset in module.PRESETS]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("log.every", 0),
        ("evaluate.every", -1),
        ("sample.num", -4),
        ("sample.batch_size", 0),
        ("checkpoint.keep", 0),
        ("seed", 2**32),
        ("model.kv_heads", 0),
        ("data.label_dropout", 1.5),
        ("optimizer.learning_rate", math.nan),
        ("optimizer.weight_decay", math.inf),
        ("optimizer.b2", 1.0),
        ("optimizer.ema", 1.0),
    ],
)
def test_a_number_out_of_range_is_refused_by_name_before_any_work(name, value, tmp_path):
    config = tiny(4)
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing was prepared"


def test_a_sampling_parameter_is_checked_at_once_if_the_run_samples(tmp_path):
    changes = {"sample.every": 2, "sample.temperature": math.nan}
    with pytest.raises(ValueError, match="temperature is nan"):
        train(tiny(4, **changes), tmp_path)
    check_numbers(tiny(4, **changes | {"sample.num": 0}))


@pytest.mark.parametrize(("module", "preset"), PRESETS)
def test_fifty_steps_of_any_preset_fit_its_schedule_and_its_intervals(module, preset):
    config = module.get_config(preset)
    config.steps = 50
    check_numbers(config)
    rates = [float(optimizer.schedule(config.optimizer, 50)(step)) for step in range(51)]
    peak = config.optimizer.learning_rate
    assert max(rates) == pytest.approx(peak, rel=1e-6)
    assert rates[50] == pytest.approx(peak * config.optimizer.final_fraction, rel=1e-4)
    assert "50 steps" in messages.shortened(config)[0]
    intervals = {name: config[name].every for name in ("evaluate", "sample", "checkpoint")}
    work = [Duty(name, every, lambda step, state: None) for name, every in intervals.items()]
    duties = Duties(work, config.steps, check=lambda name: None)
    assert duties.due(50) == ["evaluate", "sample", "checkpoint"]
    # The averaged weights are mostly those of the second half of the run, not the initial ones.
    if config.optimizer.ema:
        share_of_first = math.prod(
            float(optimizer.ema_decay(config.optimizer, step)) for step in range(1, 51)
        )
        assert share_of_first < 1e-6


def test_a_run_of_few_steps_without_samples(digit_shards, tmp_path, monkeypatch):
    """It is logged once, at the end; neither engine nor prompts are made."""
    for name in ("Engine", "prompts"):
        monkeypatch.setattr(f"jpeglm_jax.training.samples.{name}", None)
    changes = {"data.shards": digit_shards, "log.every": 50, "sample.every": 2, "sample.num": 0}
    train(tiny(3, **changes), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [3]
    assert not (tmp_path / "samples").exists()

    # Fewer steps in the same workdir are refused.
    with pytest.raises(CheckpointError, match="of step 3, .* steps = 2; give another --workdir"):
        train(tiny(2, **changes), tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
