"""From the metrics of single steps to those of a tokenizer's training."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from jpeglm_jax.training.metrics import Clock


class Meter:
    """Gathers the metrics of steps between two reports, and the time they took.

    Args:
      flops_per_image: of a training step.
      peak_flops: of all devices together; None if it is not known, and then there is no MFU.
      sums: what an interrupted interval had gathered; see `state`.
    """

    def __init__(
        self, flops_per_image: float, peak_flops: float | None, sums: Mapping[str, float] | None
    ):
        self._flops_per_image, self._peak_flops = flops_per_image, peak_flops
        self._sums = dict(sums or {})
        self._images = 0  # of the interval
        self._clock = Clock()

    @property
    def state(self) -> dict[str, float]:
        """The sums so far, for a checkpoint in the middle of an interval."""
        return dict(self._sums)

    def add(self, values: Mapping[str, Any], images: int) -> None:
        """Adds the metrics of one step, whose batch has so many images."""
        for name, value in values.items():
            if name != "finite":
                self._sums[f"sum/{name}"] = self._sums.get(f"sum/{name}", 0.0) + float(value)
                # Some parts of the loss begin in the middle of an interval.
                self._sums[f"steps/{name}"] = self._sums.get(f"steps/{name}", 0.0) + 1
        self._images += images

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """See `Clock.paused`."""
        return self._clock.paused()

    def read(self) -> dict[str, float]:
        """Means since the last call, as `train/*` and `perf/*`; `train/restarts` is their sum."""
        values = {}
        for key, total in self._sums.items():
            kind, name = key.split("/")
            if kind == "sum":
                steps = 1 if name == "restarts" else self._sums[f"steps/{name}"]
                values[f"train/{name}"] = total / steps
        seconds, goodput = self._clock.read()
        rate = self._images / seconds
        values |= {"perf/images_per_second": rate, "perf/goodput": goodput}
        if self._peak_flops:
            values["perf/mfu"] = rate * self._flops_per_image / self._peak_flops
        self._sums, self._images = {}, 0
        return values
