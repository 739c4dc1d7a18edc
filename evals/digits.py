"""Example: python -m evals.digits --generated=samples

Are generated digits the digits that were asked for? A classifier is fitted on scikit-learn's real
digits; what it says of the files is held against the labels in their manifest.jsonl. Its own
accuracy, on real digits that it did not see, stands beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from absl import flags
from etils import epath
from PIL import Image
from sklearn import datasets, svm

from data_pipelines.media.images import ImageError, open_image
from data_pipelines.utils import command

_SIDE = 8
_FITTED = 1500  # of the 1,797; the classifier is judged on the rest


def features(image: Image.Image) -> np.ndarray:
    """The pixels of an 8x8 grey image, float64 [64], 0 to 16 as in the data set."""
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() * (16 / 255)


def fit(seed: int = 0) -> tuple[svm.SVC, float]:
    """A support-vector classifier of real digits, and its accuracy on those held out from it."""
    digits = datasets.load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    fitted, judged = order[:_FITTED], order[_FITTED:]
    classifier = svm.SVC(gamma=0.001, C=10).fit(digits.data[fitted], digits.target[fitted])
    return classifier, float(classifier.score(digits.data[judged], digits.target[judged]))


def judge(folder: epath.PathLike) -> dict[str, float]:
    """Counts of a folder that `jpeglm_jax.generate` wrote.

    Every document that was asked for counts, also those without a readable file.

    Returns:
      `requested`; `strictly_valid`, `recognised` as the label asked for, both as shares of it;
      `classifier_accuracy` on real digits.

    Raises:
      ValueError: no manifest, or documents without labels.
    """
    manifest = epath.Path(folder) / "manifest.jsonl"
    if not manifest.exists():
        raise ValueError(f"{folder} has no manifest.jsonl; expected the output of a generate job")
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    if any(line["label"] < 0 for line in lines):
        raise ValueError(f"{folder} has documents without a label; nothing to recognise them as")
    classifier, accuracy = fit()
    recognised = 0
    for line in lines:
        if not line["file"]:
            continue
        try:
            image = open_image((epath.Path(folder) / line["file"]).read_bytes())
        except ImageError:  # nothing to recognise; the document still counts
            continue
        recognised += int(classifier.predict([features(image)])[0] == line["label"])
    return {
        "requested": len(lines),
        "strictly_valid": sum(line["valid"] for line in lines) / len(lines),
        "recognised": recognised / len(lines),
        "classifier_accuracy": accuracy,
    }


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    print(json.dumps(judge(flags.FLAGS.generated)))


if __name__ == "__main__":
    flags.DEFINE_string("generated", None, "Folder of generated files.", required=True)
    command.run(main)
