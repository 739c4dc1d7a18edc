"""Where the metrics of a run go: metrics.jsonl, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tqdm
from etils import epath
from ml_collections import ConfigDict

from data_pipelines.utils import files
from jpeglm_jax.parallel import distributed


class RunLog:
    """Everything that a run reports; writes and prints in the main process only.

    Use it as a context manager.

    Args:
      workdir: the run's folder.
      config: the run's configuration; written to config.json.
      start: the step the run resumes from.
      kept: lines of metrics.jsonl at that step, see `lines`.
    """

    def __init__(self, workdir: epath.Path, config: ConfigDict, start: int, kept: int):
        main = distributed.is_main()
        self._console = Console(config.steps, start, quiet=not main)
        self._metrics: MetricsLog | None = None
        if main:
            self._metrics = MetricsLog(workdir, start, kept, tensorboard=config.log.tensorboard)
            text = config.to_json_best_effort(indent=2) + "\n"
            files.write_atomically(workdir / "config.json", text.encode())

    @property
    def lines(self) -> int:
        """Lines of metrics.jsonl so far."""
        return self._metrics.lines if self._metrics else 0

    def say(self, text: str) -> None:
        """Prints text, above the progress bar if there is one."""
        self._console.say(text)

    def step(self, step: int) -> None:
        """Moves the progress bar."""
        self._console.step(step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Writes metrics of a step, and prints them."""
        self._console.metrics(step, values)
        if self._metrics:
            self._metrics.write(step, values)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Shows pixels, uint8 [height, width, 3], in TensorBoard."""
        if self._metrics:
            self._metrics.image(step, name, pixels)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._console.close()
        if self._metrics:
            self._metrics.close()


class EventWriter(Protocol):
    """What is used of a TensorBoard writer."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...
    def add_image(self, tag: str, image: np.ndarray, step: int, *, dataformats: str) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """Appends metrics to `metrics.jsonl` and TensorBoard, from one process of a run.

    Args:
      workdir: the run's folder.
      resumed: the step the run resumes from.
      kept: lines that it had written by then. What a run that was killed had written beyond
        them is cut away, so that every line is there once.
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
        """One line of JSON: `step`, then the values; null for one that is not finite."""
        stored = files.null_if_not_finite({"step": step, **values})
        line = json.dumps(stored, allow_nan=False) + "\n"
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
      start: the step it resumes from.
      quiet: print nothing.
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
        """Prints all metrics of a step in one line."""
        parts = [f"step {step:>{len(str(self._steps))}}/{self._steps}"]
        parts += [_formatted(name, value) for name, value in values.items()]
        done, left = step - self._start, self._steps - step
        if done > 0 and left > 0:
            seconds = (time.monotonic() - self._began) * left / done
            parts.append(f"{tqdm.tqdm.format_interval(seconds)} left")
        self.say(" | ".join(parts))

    def close(self) -> None:
        self._bar.close()


# How each metric is printed. Others are printed as NAME VALUE.
_FORMATS = {
    "train/loss": "loss {:.4f} nats/token",
    "train/bits_per_image": "{:.2f} bits/image",
    "train/bits_per_clip": "{:.2f} bits/clip",
    "train/bits_per_dimension": "{:.4f} bits/dim",
    "train/bits_per_byte": "{:.4f} bits/byte",
    "train/grad_norm": "grad {:.3f}",
    "train/learning_rate": "lr {:.2e}",
    "train/skipped_steps": "{:.0f} skipped",
    "train/epoch": "epoch {:.2f}",
    "train/damaged_documents": "{:,} damaged documents skipped",
    "perf/tokens_per_second": "{:,.0f} tok/s",
    "perf/mfu": "MFU {:.1%}",
    "perf/goodput": "goodput {:.1%}",
    "eval/loss": "eval: loss {:.4f} nats/token",
    "eval/bits_per_image": "{:.2f} bits/image",
    "eval/bits_per_clip": "{:.2f} bits/clip",
    "eval/bits_per_dimension": "{:.4f} bits/dim",
    "eval/bits_per_byte": "{:.4f} bits/byte",
    "train/total_loss": "loss {:.4f}",
    "train/pixel_loss": "pixels {:.4f}",
    "train/commitment": "commitment {:.4f}",
    "train/perceptual": "perceptual {:.4f}",
    "train/adversarial": "adversarial {:.4f}",
    "train/discriminator": "discriminator {:.4f}",
    "train/perplexity": "perplexity {:.1f}",
    "train/restarts": "restarted codes {:.0f}",
    "perf/images_per_second": "{:,.1f} images/s",
    "eval/pixel_loss": "eval: pixels {:.4f}",
    "eval/psnr": "PSNR {:.2f} dB",
    "eval/codes_used": "{:.1%} of the codes used",
    "eval/perplexity": "perplexity {:.1f}",
    "samples/valid": "samples: {:.1%} valid",
    "continuations/valid": "continuations: {:.1%} valid",
}


def _formatted(name: str, value: Any) -> str:
    if name in _FORMATS:
        return _FORMATS[name].format(value)
    return f"{name} {value}"
