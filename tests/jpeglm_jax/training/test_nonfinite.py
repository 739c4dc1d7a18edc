"""A step that is not finite changes nothing, also while later, finite steps are under way."""

import contextlib
import json
import math

import jax
import numpy as np
import pytest

from data_pipelines.loading.loader import Loader
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel.sharding import make_mesh
from jpeglm_jax.train import NotFinite, train
from jpeglm_jax.training import loop
from jpeglm_jax.training.checkpoint import Checkpoints
from jpeglm_jax.training.step import TrainStep, compile_init, compile_train_step
from tests.jpeglm_jax.conftest import tiny
from tests.jpeglm_jax.runs import lines, weights

VOCAB = 40


def batch_of(config, seed):
    shape = (config.batch_size, config.seq_len)
    tokens = np.random.RandomState(seed).randint(0, VOCAB, shape).astype(np.int32)
    ones = np.ones(shape, np.float32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "segments": ones.astype(np.int32),
        "positions": np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
        "weights": ones,
        "codec_bytes": ones,
    }


def test_a_finite_step_after_one_that_is_not_changes_nothing():
    config = tiny(8, **{"optimizer.ema": 0.9999, "optimizer.warmup_steps": 0})
    model = model_config(config.model, VOCAB, "cpu")
    train_step = TrainStep(ModelSpec(model), config.optimizer, config.steps, 1)
    mesh = make_mesh({"fsdp": -1}, devices=jax.devices()[:2])
    state, update = compile_init(train_step, mesh)(0), compile_train_step(train_step, mesh)
    initial = jax.device_get(state.params)

    state, metrics = update(state, batch_of(config, 0))
    assert float(metrics["finite"]) == 1
    after_one = jax.device_get((state.params, state.opt_state, state.ema))
    # The first steps of the average follow the weights: its decay is (1 + 1) / (10 + 1).
    jax.tree.map(
        lambda average, old, new: np.testing.assert_allclose(
            average, 2 / 11 * old + 9 / 11 * new, rtol=1e-5, atol=1e-7
        ),
        after_one[2],
        initial,
        after_one[0],
    )
    bad = batch_of(config, 1)
    bad["weights"] = np.where(np.arange(config.seq_len) == 7, np.inf, bad["weights"])
    state, metrics = update(state, bad)
    assert float(metrics["finite"]) == 0
    state, metrics = update(state, batch_of(config, 2))
    assert math.isfinite(float(metrics["grad_norm"])), "this step alone would be finite"
    assert float(metrics["finite"]) == 0
    now = jax.device_get((state.params, state.opt_state, state.ema))
    jax.tree.map(np.testing.assert_array_equal, now, after_one)


@pytest.mark.parametrize("bad_step", [3, 6], ids=["middle", "last"])
def test_the_report_is_computed_with_the_weights_of_its_step(
    bad_step, digit_shards, tmp_path, monkeypatch
):
    """The step after it is finite and under way when the report is made."""
    reported = []
    batches, not_finite = Loader.batches, loop.not_finite

    @contextlib.contextmanager
    def poisoned(self, start, **options):
        def every():
            for step, batch in enumerate(found, start + 1):
                bad = math.nan if step == bad_step else 1.0
                yield {**batch, "weights": batch["weights"] * bad}

        with batches(self, start, **options) as found:
            yield every()

    def report(workdir, train_step, mesh, state, data, step):
        reported.append(jax.device_get(state.params))
        return not_finite(workdir, train_step, mesh, state, data, step)

    monkeypatch.setattr(Loader, "batches", poisoned)
    monkeypatch.setattr(loop, "not_finite", report)
    changes = {"checkpoint.every": bad_step - 1, "optimizer.warmup_steps": 0, "sample.every": 6}
    with pytest.raises(NotFinite, match=f"step {bad_step}: "):
        train(tiny(6, **{"data.shards": digit_shards, **changes}), tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [bad_step - 1]
    jax.tree.map(np.testing.assert_array_equal, reported[0], weights(tmp_path))
    facts = json.loads((tmp_path / f"not_finite_{bad_step:08d}.json").read_text())
    assert facts["step"] == bad_step and facts["gradients"]
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, bad_step))
    assert not (tmp_path / "samples").exists()
