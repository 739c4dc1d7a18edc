"""Evaluation of a tokenizer during its training: PSNR, use of its codes, pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from data_pipelines.loading.loader import Loader
from data_pipelines.representations import contact_sheet
from data_pipelines.representations.vq.config import TokenizerConfig
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.sharding import BATCH_AXES
from jpeglm_jax.tokenizer.step import TokenizerStep, compile_on_batch, perplexity

_COLUMNS = 8  # images in a row of the picture
_COLLAPSED = 0.5  # share of the codes; fewer are used


class Evaluator:
    """Computes the metrics `eval/*` of a tokenizer, and shows reconstructions.

    Args:
      step: what is evaluated.
      loader: of the eval split.
      mesh: where the weights lie.
      max_batches: batches to use, the first ones; 0: all.
      num_shown: images of the picture, at most a batch.
      check: called before each batch.
    """

    def __init__(
        self,
        step: TokenizerStep,
        loader: Loader,
        mesh: Mesh,
        *,
        max_batches: int,
        num_shown: int,
        check: Callable[[], None],
    ):
        self._step, self._loader, self._max_batches = step, loader, max_batches
        self._evaluate = compile_on_batch(step.evaluate, step, mesh)
        self._show = compile_on_batch(step.shown, step, mesh)
        self._rows = sharding.named(mesh, *BATCH_AXES)
        self._num_shown, self._check = num_shown, check

    def __call__(self, params: Any, max_batches: int | None = None) -> dict[str, float]:
        """Metrics over the eval split, every image weighing the same.

        Args:
          params: weights on the mesh.
          max_batches: instead of the evaluator's own.

        Returns:
          `eval/pixel_loss`, `eval/psnr` (dB, the mean over the images), `eval/codes_used` (the
          share of the codes that occur) and `eval/perplexity` of the codes.
        """
        limit = self._max_batches if max_batches is None else max_batches
        weights = self._step.exported(params)
        sums: dict[str, Any] = {}
        for number, batch in enumerate(self._loader.eval_batches(sharding=self._rows)):
            if limit and number == limit:
                break
            self._check()
            found = jax.device_get(self._evaluate(weights, batch))
            sums = {name: sums.get(name, 0.0) + np.asarray(found[name], float) for name in found}
        counts = sums.pop("code_counts")
        images = max(float(sums.pop("images")), 1.0)
        return {f"eval/{name}": float(value) / images for name, value in sums.items()} | {
            "eval/codes_used": float(np.mean(counts > 0)),
            "eval/perplexity": float(perplexity(counts)),
        }

    def picture(self, params: Any) -> Image.Image:
        """Rows of images of the eval split, each above the row of their reconstructions."""
        with self._loader.eval_batches(sharding=self._rows) as batches:
            shown = self._show(self._step.exported(params), next(batches))
        images, made = (_images(x)[: self._num_shown] for x in jax.device_get(shown))
        blank = Image.new("RGB", images[0].size, "white")
        tiles: list[Image.Image] = []
        for first in range(0, len(images), _COLUMNS):
            for row in (images, made):
                part = row[first : first + _COLUMNS]
                tiles += part + [blank] * (min(_COLUMNS, len(images)) - len(part))
        return contact_sheet.sheet(tiles, columns=min(_COLUMNS, len(images)))


def _images(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x) for x in pixels]


def collapse(evaluated: dict[str, float], shape: TokenizerConfig, config: Any) -> str:
    """A sentence about a codebook of which most codes are not used; "" for a healthy one.

    Args:
      evaluated: see `Evaluator`.
      shape: of the tokenizer.
      config: `config.quantizer`.
    """
    used = evaluated["eval/codes_used"]
    if used >= _COLLAPSED:
        return ""
    text = (
        f"warning: the codebook has collapsed: {used * shape.num_codes:.0f} of "
        f"{shape.num_codes:,} codes are used over the eval split; "
    )
    if shape.quantizer == "fsq":
        return text + "use fewer levels (quantizer.levels)"
    if not config.restart_below:
        return text + (
            "restart unused codes with --config.quantizer.restart_below=0.1 (now 0, which is never)"
        )
    return text + (
        f"raise quantizer.restart_below, now {config.restart_below}, use fewer codes "
        "(quantizer.codes), or finite scalars: --config.quantizer.name=fsq"
    )
