"""The settings of a tokenizer's training: their ranges, and what a resumed run must not change."""

from __future__ import annotations

import json
import math
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.representations.vq.config import TokenizerConfig
from data_pipelines.utils.seeds import check_seed
from jpeglm_jax.training.data import RunData
from jpeglm_jax.training.resume import LOOP_REAL, LOOP_WHOLE, UNDER_ONE, check_ranges

_WHOLE = {"loss.adversarial.width": (8, math.inf)}
_REAL = {
    "quantizer.commitment": (0, math.inf),
    "quantizer.ema_decay": (0, UNDER_ONE),
    "quantizer.restart_below": (0, 0.5),
    "loss.perceptual.weight": (0, math.inf),
    "loss.adversarial.weight": (0, math.inf),
    "loss.adversarial.start": (0, 1),
}
# What decides the trained weights.
_DECISIVE = (
    *("seed", "steps", "batch_size", "representation"),
    *("tokenizer", "quantizer", "loss", "optimizer", "data"),
)


def check_numbers(config: ConfigDict) -> None:
    """Checks the numbers of a configuration before any work is done.

    Raises ValueError, naming it, for a number that is not finite or outside of its range.
    """
    check_ranges(config, LOOP_WHOLE | _WHOLE, LOOP_REAL | _REAL)
    if config.loss.adversarial.width % 8:
        raise ValueError(
            f"loss.adversarial.width is {config.loss.adversarial.width}; expected a multiple of 8"
        )
    check_seed(config.seed)


def identity_of(config: ConfigDict, data: RunData, shape: TokenizerConfig) -> dict[str, Any]:
    """What must be the same when a run is resumed: pixels, tokenizer, losses and batches."""
    settings = settings_of(config)
    return {
        "representation": data.representation.to_config(),
        "tokenizer": shape.to_json(),
        "training": {
            name: value
            for name, value in settings.items()
            if name.startswith(("loss.", "quantizer.")) or name == "steps"
        },
        "data": {"batches": data.train_loader.fingerprint},
    }


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """The settings that decide the trained weights, by their dotted names; JSON values."""
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key in value:
                add(f"{name}.{key}", value[key])
        else:
            found[name] = value

    for name, value in json.loads(json.dumps(config.to_dict())).items():
        if name in _DECISIVE:
            add(name, value)
    return found
