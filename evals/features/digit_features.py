"""Features for models of digits, where there are no weights of Inception: a small classifier's.

It is fitted on scikit-learn's real digits when it is needed, in about a second. Distances of its
features rank models of digits. They are not FID, compare with no other data set's, and are never
called so.
"""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
from PIL import Image
from sklearn import datasets, exceptions, neural_network

from evals import digits
from evals.features.features import Extractor

_HIDDEN = 64
_SEED = 0


def digit_classifier() -> Extractor:
    """The hidden layer of a perceptron that tells digits apart, float32 [B, 64], and its logits."""
    data = datasets.load_digits()
    classifier = neural_network.MLPClassifier((_HIDDEN,), random_state=_SEED, max_iter=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)  # as long as is enough
        classifier.fit(data.data / 16, data.target)
    (inner, outer), (inner_bias, outer_bias) = classifier.coefs_, classifier.intercepts_

    def prepare(image: np.ndarray) -> np.ndarray:
        return digits.features(Image.fromarray(image)) / 16

    def apply(batch: np.ndarray) -> dict[str, np.ndarray]:
        hidden = np.maximum(batch @ inner + inner_bias, 0)
        return {"hidden": hidden, "logits": hidden @ outer + outer_bias}

    sha256 = hashlib.sha256(b"".join(part.tobytes() for part in (inner, outer))).hexdigest()
    about = {"classifier": f"perceptron, {_HIDDEN} hidden", "weights_sha256": sha256}
    return Extractor("digit_classifier", "hidden", about, prepare, apply)
