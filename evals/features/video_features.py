"""What whole clips are looked at with: a plug-in interface, and what can be asked for by name."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from evals.features.weights import WeightsError, read


@dataclasses.dataclass(frozen=True)
class ClipExtractor:
    """Any function from clips to features.

    Attributes:
      name: what the features are called; of "i3d" the distance is called FVD.
      about: what decides the numbers, as JSON values: hash of the weights, resize, ...
      apply: uint8 [N, T, height, width, 3] -> float [N, d].
    """

    name: str
    about: Mapping[str, Any]
    apply: Callable[[np.ndarray], np.ndarray]


def make(name: str | None, weights: str | None = None) -> ClipExtractor | None:
    """The extractor of a name; None for none.

    Args:
      name: "i3d", or "MODULE:FUNCTION": a function without arguments that returns a
        `ClipExtractor`.
      weights: path or URL, for "i3d".

    Raises:
      WeightsError: no weights, or unusable ones.
      ValueError: an unknown name.
    """
    if not name:
        return None
    if name == "i3d":
        from evals.features import i3d

        if not weights:
            raise WeightsError(
                "--video_features=i3d needs --video_weights=FILE or URL: rgb_imagenet.pt of "
                "pytorch-i3d. Nothing is fetched unasked"
            )
        return i3d.extractor(read(weights))
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"found video_features {name!r}, expected i3d or MODULE:FUNCTION")
    found = getattr(importlib.import_module(module), function)()
    if not isinstance(found, ClipExtractor):
        raise ValueError(f"{name} gives a {type(found).__name__}, expected a ClipExtractor")
    return found
