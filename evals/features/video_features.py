"""Makes extractors of whole clips by name, for `evals.video`."""

from __future__ import annotations

import dataclasses

from data_pipelines.utils.plugins import load_object
from evals.features import i3d
from evals.features.base import ClipExtractor, WeightsError
from evals.features.weights import read


def make(name: str | None, weights: str | None = None) -> ClipExtractor | None:
    """Makes the extractor of a name; None without a name.

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
        if not weights:
            raise WeightsError(
                "--video_features=i3d needs --video_weights=FILE or URL: rgb_imagenet.pt of "
                "pytorch-i3d. No weights are downloaded by default"
            )
        flags = {"video_features": name, "video_weights": weights}
        return dataclasses.replace(i3d.extractor(read(weights)), flags=flags)
    if ":" not in name:
        raise ValueError(f"found video_features {name!r}, expected i3d or MODULE:FUNCTION")
    found = load_object(name, "video_features")()
    if not isinstance(found, ClipExtractor):
        raise ValueError(
            f"{name} returned a {type(found).__name__}, expected an "
            "evals.features.base.ClipExtractor"
        )
    return dataclasses.replace(found, flags={"video_features": name})
