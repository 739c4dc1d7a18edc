"""Example: python -m evals.digits --generated=samples

Measures whether generated digits show the requested digit. A classifier is trained on
scikit-learn's digits; its predictions for the files are compared with the labels in their
manifest.jsonl. Its accuracy on real test digits is reported as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from sklearn import datasets, svm

from data_pipelines import representations
from data_pipelines.utils import command
from evals.features.digit_features import digit_pixels
from evals.inputs.codec import GeneratedImages
from evals.reporting import settings
from evals.reporting.results import command_line, make_result
from jpeglm_jax.training import checkpoint

_NUM_TRAIN = 1500  # of the 1,797 digits; the rest is the test set


def fit(seed: int = 0) -> tuple[svm.SVC, float]:
    """Trains a support-vector classifier of digits; returns it with its accuracy on test digits."""
    digits = datasets.load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    train, test = order[:_NUM_TRAIN], order[_NUM_TRAIN:]
    classifier = svm.SVC(gamma=0.001, C=10).fit(digits.data[train], digits.target[train])
    return classifier, float(classifier.score(digits.data[test], digits.target[test]))


def recognition(folder: epath.PathLike) -> dict[str, Any]:
    """Recognition of the digits in a folder that `jpeglm_jax.generate` wrote.

    Every requested document counts, also those of which nothing decodes.

    Returns:
      A result, see `results.make_result`: `requested`, the number of documents; `strictly_valid`
      and `recognised` as the requested label, as shares of it; `classifier_accuracy` on real test
      digits.

    Raises:
      ValueError: no job, or documents without labels.
    """
    generated = GeneratedImages(folder, representations.load(folder))
    if any(generated.label(number) < 0 for number in range(len(generated))):
        raise ValueError(f"{folder} has documents without a label; expected a job with labels")
    classifier, accuracy = fit()
    recognised = 0
    for number in range(len(generated)):
        image = generated.shown(number)
        if image is None:  # not recognised; the document still counts
            continue
        found = classifier.predict([digit_pixels(image)])[0]
        recognised += int(found == generated.label(number))
    requested, valid = len(generated), generated.outcome.strictly_valid
    return make_result(
        "digits",
        command_line("evals.digits", {"generated": folder}),
        {
            "generated": str(folder),
            "n_generated": requested,
            **settings.of_generation(folder),
            "validity": generated.validity_of,
        },
        {
            "requested": requested,
            "strictly_valid": valid / requested,
            "recognised": recognised / requested,
            "classifier_accuracy": accuracy,
        },
        versions=checkpoint.versions(),
    )


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    print(json.dumps(recognition(flags.FLAGS.generated), allow_nan=False))


if __name__ == "__main__":
    flags.DEFINE_string("generated", None, "Folder of generated files.", required=True)
    command.run(main)
