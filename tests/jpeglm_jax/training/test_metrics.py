"""Metrics are read one step late, in order, each once; likelihoods in three units."""

import math

import jax.numpy as jnp
import pytest

from jpeglm_jax.training.metrics import Meter, PendingMetrics, likelihood


def test_metrics_are_read_when_the_next_step_was_pushed_and_at_a_flush():
    read = []
    pending = PendingMetrics(lambda step, metrics: read.append((step, float(metrics["nll"]))))
    pending.push(1, {"nll": jnp.float32(10)})
    assert read == []
    pending.push(2, {"nll": jnp.float32(20)})
    assert read == [(1, 10.0)]
    pending.flush()
    pending.flush()
    assert read == [(1, 10.0), (2, 20.0)]


def test_metrics_whose_reading_failed_are_not_read_again():
    def read(step, metrics):
        raise ValueError(step)

    pending = PendingMetrics(read)
    pending.push(1, {})
    with pytest.raises(ValueError, match="1"):
        pending.flush()
    pending.flush()


def test_a_likelihood_is_stated_per_token_per_document_and_per_codec_byte():
    sums = {"nll": 8 * math.log(2), "tokens": 4.0, "documents": 2.0, "bytes": 16.0}
    found = likelihood(sums, "clip")
    assert found == pytest.approx(
        {"loss": 2 * math.log(2), "bits_per_clip": 4.0, "bits_per_byte": 0.5}
    )
    assert set(likelihood(sums | {"bytes": 0.0, "documents": 0.0})) == {"loss"}


def test_a_meter_reports_means_since_the_last_report_and_keeps_half_an_interval():
    sums = {"nll": 2.0, "tokens": 4.0, "documents": 0.0, "bytes": 0.0, "grad_norm": 3.0}
    meter = Meter(flops_per_token=10.0, peak_flops=1e3, sums=None)
    meter.add(sums, positions=8)
    resumed = Meter(flops_per_token=10.0, peak_flops=1e3, sums=meter.state)
    resumed.add(sums | {"grad_norm": 5.0}, positions=8)
    found = resumed.read()
    assert found["train/loss"] == 0.5 and found["train/grad_norm"] == 4.0
    assert found["perf/mfu"] == pytest.approx(found["perf/tokens_per_second"] * 10 / 1e3)
    assert 0 <= found["perf/goodput"] <= 1 and resumed.state == {}
