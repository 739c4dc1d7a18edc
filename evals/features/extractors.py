"""The networks that can be asked for by name, as extractors."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from evals.features import inception, resize
from evals.features.features import Extractor, on_devices
from evals.features.weights import Weights, WeightsError, read

NAMES = ("inception", "dinov2", "digits")


def make(
    name: str, *, weights: str | None = None, dims: int = 2048, preset: str = "clean"
) -> Extractor:
    """The extractor of a name.

    Args:
      name: one of `NAMES`, or "MODULE:FUNCTION": a function without arguments that returns an
        `Extractor`.
      weights: path or URL of weights, for "inception" and "dinov2".
      dims: of the FID network's features: 64, 192, 768 or 2048.
      preset: how images are resized for the FID network, see `evals.resize`.

    Raises:
      WeightsError: no weights, or unusable ones.
      ValueError: an unknown name.
    """
    if name == "digits":
        from evals.features.digit_features import digit_classifier

        return digit_classifier()
    if ":" in name:
        return _from_module(name)
    if name not in NAMES:
        raise ValueError(f"found features {name!r}, expected {', '.join(NAMES)} or MODULE:FUNCTION")
    if not weights:
        raise WeightsError(
            f"--features={name} needs --weights=FILE or URL; the FID network's are pytorch-fid's "
            "pt_inception-2015-12-05-6726825d.pth. Nothing is fetched unasked"
        )
    if name == "dinov2":
        from evals.features import dinov2

        return dinov2.extractor(read(weights))
    return fid_inception(read(weights), dims, preset)


def define_flags() -> None:
    """The flags of jobs that look at images with a network."""
    flags.DEFINE_string(
        "features",
        "auto",
        f"{', '.join(NAMES)} or MODULE:FUNCTION. auto: inception where there are weights, else "
        "digits where these are the references.",
    )
    flags.DEFINE_string("weights", None, "File or URL of the network's weights.")
    flags.DEFINE_enum("dims", "2048", ["64", "192", "768", "2048"], "Of the FID network.")
    flags.DEFINE_enum(
        "resize", "clean", resize.PRESETS, "As clean-fid, torch-fidelity or pytorch-fid."
    )


def from_flags(values: Any, references: str | None) -> Extractor | None:
    """The extractor that the flags of `define_flags` name; None if nothing does.

    Args:
      values: of the flags.
      references: what images are compared with, or where those come from.
    """
    name = values.features
    if name == "auto":
        if not values.weights and references != "digits":
            return None
        name = "inception" if values.weights else "digits"
    return make(name, weights=values.weights, dims=int(values.dims), preset=values.resize)


def fid_inception(weights: Weights, dims: int = 2048, preset: str = "clean") -> Extractor:
    """The FID network. Besides features of `dims` it gives those for sFID and the Inception score
    where the weights reach so far and the main features need their layers anyway.

    Raises WeightsError if the weights do not reach features of `dims`.
    """
    wanted = _features_beside(str(dims), weights.tensors)
    resize.matrix(preset, 1, 1)  # type: ignore[arg-type]  # refuses an unknown one at once
    model = inception.load(weights.tensors, wanted)
    centre, scale = resize.NORMALISATION[preset]

    def prepare(image: np.ndarray) -> np.ndarray:
        size = (inception.SIZE, inception.SIZE)
        return (resize.resized(image, size, preset) - centre) / scale  # type: ignore[arg-type]

    about = {
        "dims": dims,
        "resize": preset,
        "weights": weights.name,
        "weights_sha256": weights.sha256,
        "weights_known_as": inception.KNOWN_WEIGHTS.get(weights.sha256),
    }
    apply = on_devices(lambda model, x: model(x), model)
    return Extractor("inception", str(dims), about, prepare, apply)


def _features_beside(main: str, tensors: Any) -> Sequence[str]:
    beside = {"768": ["spatial"], "2048": ["spatial", "logits"]}.get(main, [])
    reached = inception.reached(tensors)
    return [main, *(name for name in beside if name in reached)]


def _from_module(where: str) -> Extractor:
    module, _, function = where.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--features={where} cannot be imported: {error}") from error
    if not isinstance(made, Extractor):
        raise ValueError(
            f"--features={where} returned a {type(made).__name__}, expected an "
            "evals.features.features.Extractor"
        )
    return made
