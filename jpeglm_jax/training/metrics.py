"""From the sums of single steps to the metrics of a run."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import psutil
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm_jax.model import flops
from jpeglm_jax.model.config import ModelConfig
from jpeglm_jax.training.data import RunData


def likelihood(
    sums: Mapping[str, float], medium: str = "image", num_dimensions: int = 0
) -> dict[str, float]:
    """Sums over targets -> the ways to state a likelihood.

    Loss per token depends on the vocabulary: more entries make fewer and harder tokens. Bits per
    codec byte and bits per image compare across tokenizers; bits per image (or clip) also across
    representations.

    Args:
      sums: of a `TrainStep.loss_sums`.
      medium: what a document is called: "image", "clip".
      num_dimensions: of a document, see `Representation.num_dimensions`.

    Returns:
      loss (nats per token), bits_per_MEDIUM, bits_per_dimension, bits_per_byte; the last three only
      where documents ended, where the representation loses nothing, and where the codec has bytes.
    """
    bits = sums["nll"] / math.log(2)
    result = {"loss": sums["nll"] / sums["tokens"]}
    if sums["documents"]:
        result[f"bits_per_{medium}"] = bits / sums["documents"]
        if num_dimensions:
            result["bits_per_dimension"] = bits / sums["documents"] / num_dimensions
    if sums["bytes"]:
        result["bits_per_byte"] = bits / sums["bytes"]
    return result


class PendingMetrics:
    """Metrics of the newest step, read when the next one is under way.

    Reading waits for the device. One step late, the device has the next step to work on.

    Args:
      read: called with a step and its metrics on the host, in the order of the steps.
    """

    def __init__(self, read: Callable[[int, Mapping[str, Any]], None]):
        self._read = read
        self._pending: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> None:
        """Takes the metrics of a step, still on the device, and reads those of the one before."""
        before, self._pending = self._pending, (step, metrics)
        self._deliver(before)

    def flush(self) -> None:
        """Reads what is pending."""
        before, self._pending = self._pending, None
        self._deliver(before)

    def _deliver(self, pending: tuple[int, Any] | None) -> None:
        if pending is not None:
            step, metrics = pending
            self._read(step, jax.device_get(metrics))


class Clock:
    """The time that steps take: of an interval between two reports, and of the process's life."""

    def __init__(self) -> None:
        self._stepping = 0.0  # seconds, of the intervals that were read
        # The age of the process is taken once: later the clock may be set.
        age = time.time() - psutil.Process().create_time()
        self._process_began = time.monotonic() - age
        self._began = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock during anything that is not training."""
        stopped = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - stopped

    def read(self) -> tuple[float, float]:
        """(seconds of the interval that ends now, goodput).

        Goodput is the share of the life of this process that was spent in steps: not in start-up,
        compilation, evaluation, sampling and waiting for checkpoints.
        """
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        self._stepping += seconds
        return seconds, self._stepping / (now - self._process_began)


class Meter:
    """Gathers the sums of steps between two reports, and the time they took.

    Args:
      flops_per_token: of the model's training step.
      peak_flops: of all devices together; None if it is not known, and then there is no MFU.
      sums: what an interrupted interval had gathered; see `state`.
      medium: what a document is, in the names of metrics: "image", "clip".
      num_dimensions: of a document; 0: none.
    """

    def __init__(
        self,
        flops_per_token: float,
        peak_flops: float | None,
        sums: Mapping[str, float] | None,
        medium: str = "image",
        num_dimensions: int = 0,
    ):
        self._medium, self._num_dimensions = medium, num_dimensions
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._sums = dict(sums or {})
        self._positions = 0  # of the interval
        self._clock = Clock()

    @classmethod
    def of_run(
        cls,
        config: ConfigDict,
        model: ModelConfig,
        mesh: Mesh,
        data: RunData,
        sums: Mapping[str, float] | None,
    ) -> Meter:
        """The meter of a run: FLOPs of its model, peak of its mesh, medium of its data."""
        peak = flops.peak_flops(mesh.devices.flat[0])
        return cls(
            flops.train_flops_per_token(model, config.seq_len),
            peak * mesh.size if peak else None,
            sums,
            data.representation.medium,
            data.representation.num_dimensions,
        )

    @property
    def state(self) -> dict[str, float]:
        """The sums so far, for a checkpoint in the middle of an interval."""
        return dict(self._sums)

    def add(self, values: Mapping[str, Any], positions: int) -> None:
        """Adds the metrics of one step, whose batch has so many positions, padding included."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        if "skipped" in values:
            self._sums["skipped"] = float(values["skipped"])  # counted from the start already
        self._sums["steps"] = self._sums.get("steps", 0) + 1
        self._positions += positions

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """See `Clock.paused`."""
        return self._clock.paused()

    def read(self) -> dict[str, float]:
        """Means since the last call, as `train/*` and `perf/*`; see `Clock.read` for goodput."""
        found = likelihood(self._sums, self._medium, self._num_dimensions)
        found["grad_norm"] = self._sums["grad_norm"] / self._sums["steps"]
        if "skipped" in self._sums:
            found["skipped_steps"] = self._sums["skipped"]
        values = {f"train/{name}": value for name, value in found.items()}
        seconds, goodput = self._clock.read()
        rate = self._positions / seconds
        values |= {"perf/tokens_per_second": rate, "perf/goodput": goodput}
        if self._peak_flops:
            values["perf/mfu"] = rate * self._flops_per_token / self._peak_flops
        self._sums, self._positions = {}, 0
        return values
