"""Example: python -m evals.digits --generated=samples

Measures whether generated digits show the requested digit. A classifier is trained on
scikit-learn's digits; its predictions for the files are compared with the labels in their
manifest.jsonl. Its accuracy on real test digits is reported as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from absl import flags
from etils import epath
from sklearn import datasets, svm

from data_pipelines.media.images import ImageError, open_image
from data_pipelines.utils import command
from evals.features.digit_features import digit_pixels
from jpeglm_jax.generation.manifest import MANIFEST

_NUM_TRAIN = 1500  # of the 1,797 digits; the rest is the test set


def fit(seed: int = 0) -> tuple[svm.SVC, float]:
    """Trains a support-vector classifier of digits; returns it with its accuracy on test digits."""
    digits = datasets.load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    train, test = order[:_NUM_TRAIN], order[_NUM_TRAIN:]
    classifier = svm.SVC(gamma=0.001, C=10).fit(digits.data[train], digits.target[train])
    return classifier, float(classifier.score(digits.data[test], digits.target[test]))


def recognition(folder: epath.PathLike) -> dict[str, float]:
    """Recognition of the digits in a folder that `jpeglm_jax.generate` wrote.

    Every requested document counts, also those without a readable file.

    Returns:
      `requested`, their number; `strictly_valid` and `recognised` as the requested label, as
      shares of it; `classifier_accuracy` on real test digits.

    Raises:
      ValueError: no manifest, or documents without labels.
    """
    manifest = epath.Path(folder) / MANIFEST
    if not manifest.exists():
        raise ValueError(f"{folder} has no {MANIFEST}; expected the output of a generate job")
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    if not lines:
        raise ValueError(f"{manifest} is empty; expected a line for each document")
    if any(line["label"] < 0 for line in lines):
        raise ValueError(f"{folder} has documents without a label; expected a job with labels")
    classifier, accuracy = fit()
    recognised = 0
    for line in lines:
        if not line["file"]:
            continue
        try:
            image = open_image((epath.Path(folder) / line["file"]).read_bytes())
        except ImageError:  # not recognised; the document still counts
            continue
        recognised += int(classifier.predict([digit_pixels(image)])[0] == line["label"])
    return {
        "requested": len(lines),
        "strictly_valid": sum(line["valid"] for line in lines) / len(lines),
        "recognised": recognised / len(lines),
        "classifier_accuracy": accuracy,
    }


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    print(json.dumps(recognition(flags.FLAGS.generated), allow_nan=False))


if __name__ == "__main__":
    flags.DEFINE_string("generated", None, "Folder of generated files.", required=True)
    command.run(main)
