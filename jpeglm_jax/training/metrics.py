"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and lines for the person watching."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import psutil
import tqdm
from etils import epath

from data_pipelines.shards import files


class EventWriter(Protocol):
    """What is used of a TensorBoard writer."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...
    def add_image(self, tag: str, image: np.ndarray, step: int, *, dataformats: str) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def likelihood(sums: Mapping[str, float], medium: str = "image") -> dict[str, float]:
    """Sums over places -> the three ways to state a likelihood.

    Tokens can flatter: a larger vocabulary has fewer and harder ones. Bits an image and bits a
    codec byte compare across tokenizers; bits an image (or clip) also across representations.
    """
    bits = sums["nll"] / math.log(2)
    result = {"loss": sums["nll"] / sums["tokens"]}
    if sums["documents"]:
        result[f"bits_per_{medium}"] = bits / sums["documents"]
    if sums["bytes"]:
        result["bits_per_byte"] = bits / sums["bytes"]
    return result


class MetricsLog:
    """Appends metrics to `metrics.jsonl` and TensorBoard, from one process of a run.

    Args:
      workdir: the run's folder.
      resumed: the step the run goes on from.
      kept: lines that it had written by then. What a run that was killed had written beyond
        them is cut away, so that everything is there once.
      tensorboard: also write event files.
    """

    def __init__(self, workdir: epath.PathLike, resumed: int, kept: int, *, tensorboard: bool):
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._lines = self._path.read_text().splitlines(True)[:kept] if kept else []
        files.write_atomically(self._path, "".join(self._lines).encode())
        self._events: EventWriter | None = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            logdir = str(epath.Path(workdir) / "tensorboard")
            self._events = SummaryWriter(logdir, purge_step=resumed + 1)

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return len(self._lines)

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """One line of JSON: `step`, then the values."""
        line = json.dumps({"step": step, **values}) + "\n"
        self._lines.append(line)
        if files.is_remote(self._path):
            # Object stores cannot append; the file is small.
            self._path.write_text("".join(self._lines))
        else:
            with open(self._path, "a") as file:
                file.write(line)
        if self._events:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._events.add_scalar(name, value, step)
            self._events.flush()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Shows pixels, uint8 [height, width, 3], in TensorBoard."""
        if self._events:
            self._events.add_image(name, pixels, step, dataformats="HWC")
            self._events.flush()

    def close(self) -> None:
        if self._events:
            self._events.close()


class Console:
    """A progress bar on a terminal, plain lines elsewhere; silent but in one process.

    Args:
      steps: length of the run.
      start: the step it goes on from.
      quiet: say nothing.
    """

    def __init__(self, steps: int, start: int, *, quiet: bool = False):
        self._quiet = quiet
        self._steps = steps
        self._start, self._began = start, time.monotonic()
        self._bar = tqdm.tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=quiet or not sys.stderr.isatty(),
        )

    def step(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(step - self._bar.n)

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if not self._quiet:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Prints one line that says everything."""
        parts = [f"step {step:>{len(str(self._steps))}}/{self._steps}"]
        parts += [_spelled(name, value) for name, value in values.items()]
        done, left = step - self._start, self._steps - step
        if done > 0 and left > 0:
            seconds = (time.monotonic() - self._began) * left / done
            parts.append(f"{tqdm.tqdm.format_interval(seconds)} left")
        self.say(" | ".join(parts))

    def close(self) -> None:
        self._bar.close()


_SPELLED = {
    "loss": "loss {:.4f} nats/token",
    "bits_per_image": "{:.2f} bits/image",
    "bits_per_byte": "{:.4f} bits/byte",
    "heldout_loss": "held out: loss {:.4f} nats/token",
    "heldout_bits_per_image": "{:.2f} bits/image",
    "bits_per_clip": "{:.2f} bits/clip",
    "heldout_bits_per_clip": "{:.2f} bits/clip",
    "heldout_bits_per_byte": "{:.4f} bits/byte",
    "grad_norm": "grad {:.3f}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_second": "{:,.0f} tok/s",
    "mfu": "MFU {:.1%}",
    "goodput": "goodput {:.1%}",
    "skipped": "{:.0f} skipped",
    "epoch": "epoch {:.2f}",
    "damaged_documents": "{:,} damaged documents skipped",
    "samples_valid": "samples: {:.1%} valid",
}


def _spelled(name: str, value: Any) -> str:
    if name in _SPELLED:
        return _SPELLED[name].format(value)
    return f"{name} {value}"


class Meter:
    """Gathers the sums of steps between two reports, and the time they took.

    Args:
      flops_per_token: of the model's training step.
      peak_flops: of all devices together; None if it is not known, and then there is no MFU.
      sums: what an interrupted interval had gathered; see `state`.
      medium: what a document is, in the names of metrics: "image", "clip".
    """

    def __init__(
        self,
        flops_per_token: float,
        peak_flops: float | None,
        sums: Mapping[str, float] | None,
        medium: str = "image",
    ):
        self._medium = medium
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._stepping = 0.0  # seconds, of the intervals that were read
        self._sums = dict(sums or {})
        self._places = 0  # since the clock was started
        self._began = time.monotonic()

    @property
    def state(self) -> dict[str, float]:
        """The sums so far, for a checkpoint in the middle of an interval."""
        return dict(self._sums)

    def add(self, values: Mapping[str, Any], places: int) -> None:
        """Takes in the metrics of one step, whose batch has so many places, padding included."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        if "skipped" in values:
            self._sums["skipped"] = float(values["skipped"])  # counted from the start already
        self._sums["steps"] = self._sums.get("steps", 0) + 1
        self._places += places

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock while something else than training goes on."""
        stopped = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - stopped

    def read(self) -> dict[str, float]:
        """Means since the last call.

        `goodput` is the share of the life of this process that went into steps: not into starting,
        compiling, evaluating, sampling and waiting for saves.
        """
        values = likelihood(self._sums, self._medium)
        values["grad_norm"] = self._sums["grad_norm"] / self._sums["steps"]
        if "skipped" in self._sums:
            values["skipped"] = self._sums["skipped"]
        now = time.monotonic()
        rate = self._places / (now - self._began)
        values["tokens_per_second"] = rate
        self._stepping += now - self._began
        values["goodput"] = self._stepping / (time.time() - psutil.Process().create_time())
        if self._peak_flops:
            values["mfu"] = rate * self._flops_per_token / self._peak_flops
        self._sums, self._places, self._began = {}, 0, now
        return values
