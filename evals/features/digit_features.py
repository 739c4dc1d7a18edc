"""Features for models of digits: the hidden layer of a small classifier, which needs no weights.

The classifier is trained on scikit-learn's digits on first use, which takes about a second.
Distances of its features rank models of digits. They are not FID, and are not comparable with
distances on other data sets.
"""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
from PIL import Image
from sklearn import datasets, exceptions, neural_network

from evals.features.base import Extractor

_SIDE = 8
_HIDDEN = 64
_SEED = 0


def digit_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of an 8x8 grey image, float64 [64], 0 to 16 as in scikit-learn's data set."""
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() * (16 / 255)


def digit_classifier() -> Extractor:
    """The hidden layer of a digit classifier, float32 [B, 64], and its logits, float32 [B, 10]."""
    data = datasets.load_digits()
    classifier = neural_network.MLPClassifier((_HIDDEN,), random_state=_SEED, max_iter=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)  # 60 iterations suffice
        classifier.fit(data.data / 16, data.target)
    (inner, outer), (inner_bias, outer_bias) = classifier.coefs_, classifier.intercepts_

    def prepare(image: np.ndarray) -> np.ndarray:
        return digit_pixels(Image.fromarray(image)) / 16

    def apply(batch: np.ndarray) -> dict[str, np.ndarray]:
        hidden = np.maximum(batch @ inner + inner_bias, 0)
        return {"hidden": hidden, "logits": hidden @ outer + outer_bias}

    sha256 = hashlib.sha256(b"".join(part.tobytes() for part in (inner, outer))).hexdigest()
    settings = {"classifier": f"perceptron, {_HIDDEN} hidden", "weights_sha256": sha256}
    return Extractor("digit_classifier", "hidden", settings, prepare, apply)
