"""Makes extractors of images by name and by flags, for all jobs that compare images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from data_pipelines.utils import command
from data_pipelines.utils.plugins import load_object
from evals.features import inception, resize
from evals.features.base import Extractor, WeightsError
from evals.features.features import on_devices
from evals.features.weights import Weights, read

NAMES = ("inception", "dinov2", "clip", "digits")
_WEIGHTED = tuple(name for name in NAMES if name != "digits")


def make(
    name: str, *, weights: str | None = None, dims: int = 2048, preset: str | None = None
) -> Extractor:
    """Makes the extractor of a name.

    Args:
      name: one of `NAMES`, or "MODULE:FUNCTION": a function without arguments that returns an
        `Extractor`.
      weights: path or URL of weights, for "inception", "dinov2" and "clip".
      dims: of the FID network's features: 64, 192, 768 or 2048.
      preset: how images are resized for the network, see `evals.features.resize`; None: as is
        usual for it.

    Raises:
      WeightsError: no weights, or unusable ones.
      ValueError: an unknown name.
    """
    found = _make(name, weights, dims, preset)
    flags: dict[str, Any] = {"features": name}
    if name in _WEIGHTED:
        flags |= {"weights": weights, "resize": preset}
    if name == "inception":
        flags["dims"] = str(dims)
    return dataclasses.replace(found, flags=flags)


def _make(name: str, weights: str | None, dims: int, preset: str | None) -> Extractor:
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
            "pt_inception-2015-12-05-6726825d.pth. No weights are downloaded by default"
        )
    if name == "dinov2":
        from evals.features import dinov2

        return dinov2.extractor(read(weights), preset or "clean")  # type: ignore[arg-type]
    if name == "clip":
        from evals.features.clip import network

        network.require_openais(weights)
        return network.extractor(read(weights), preset or "pillow")  # type: ignore[arg-type]
    return fid_inception(read(weights), dims, preset or "clean")


def define_flags() -> None:
    """Defines the flags of jobs that extract features of images."""
    flags.DEFINE_string(
        "features",
        "auto",
        f"{', '.join(NAMES)} or MODULE:FUNCTION. auto: inception if --weights are given, else "
        "digits if the references are digits.",
    )
    flags.DEFINE_string("weights", None, "File or URL of the network's weights.")
    flags.DEFINE_enum(
        "dims", "2048", ["64", "192", "768", "2048"], "Dimensions of the FID network's features."
    )
    flags.DEFINE_enum(
        "resize",
        None,
        resize.PRESETS,
        "Resize of clean-fid, torch-fidelity and ADM (tf1), pytorch-fid (torch), or dgm-eval and "
        "CMMD (pillow). By default pillow for clip, else clean.",
    )


def from_flags(values: Any, references: str | None) -> Extractor | None:
    """The extractor named by the flags of `define_flags`; None for auto without a default.

    Args:
      values: parsed flags.
      references: the reference set, or the source of the training data.

    Raises ValueError for flags that have no effect on these features, and as `make` does.
    """
    name = values.features
    if name == "auto":
        if not values.weights and references != "digits":
            return None
        name = "inception" if values.weights else "digits"
    without_effect = [] if name == "inception" else ["dims"]
    if name not in _WEIGHTED:
        without_effect += ["weights", "resize"]
    command.refuse_without_effect(
        command.given(values, *without_effect), f"with --features={name}: leave it out"
    )
    return make(name, weights=values.weights, dims=int(values.dims), preset=values.resize)


def fid_inception(weights: Weights, dims: int = 2048, preset: str = "clean") -> Extractor:
    """The FID network. It also gives the features of sFID and of the Inception score, if their
    layers are in the weights and are needed for the main features anyway.

    Raises WeightsError if the weights lack layers of the features of `dims`.
    """
    wanted = _wanted_features(str(dims), weights.tensors)
    if preset not in resize.PRESETS:
        raise ValueError(f"found resize {preset!r}, expected one of {', '.join(resize.PRESETS)}")
    model = inception.load(weights.tensors, wanted)
    centre, scale = resize.NORMALISATION[preset]

    def prepare(image: np.ndarray) -> np.ndarray:
        size = (inception.SIZE, inception.SIZE)
        return (resize.resized(image, size, preset) - centre) / scale  # type: ignore[arg-type]

    settings = {
        "dims": dims,
        "resize": preset,
        "weights": weights.name,
        "weights_sha256": weights.sha256,
        "weights_known_as": inception.KNOWN_WEIGHTS.get(weights.sha256),
    }
    apply = on_devices(lambda model, x: model(x), model)
    return Extractor("inception", str(dims), settings, prepare, apply)


def _wanted_features(main: str, tensors: Any) -> Sequence[str]:
    extra = {"768": ["spatial"], "2048": ["spatial", "logits"]}.get(main, [])
    available = inception.available(tensors)
    return [main, *(name for name in extra if name in available)]


def _from_module(name: str) -> Extractor:
    extractor = load_object(name, "features")()
    if not isinstance(extractor, Extractor):
        raise ValueError(
            f"--features={name} returned a {type(extractor).__name__}, expected an "
            "evals.features.base.Extractor"
        )
    return extractor
