"""Example: python -m evals.digits --generated=samples --out=evaluation

Measures whether generated digits show the requested digit. A classifier is trained on
scikit-learn's digits; its predictions for the files are compared with the labels in their
manifest.jsonl. Its accuracy on real test digits is reported as well. Of clips of moving digits, the
first and the last frame are classified, by the brightest square of the size of a digit. Prints a
table, and with --out writes digits.json to that folder, which the page of evals.report shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from sklearn import datasets, svm

from data_pipelines import representations, sources
from data_pipelines.representations.base import Representation
from data_pipelines.sources.generated import moving_digits
from data_pipelines.utils import command
from evals.features.digit_features import digit_pixels
from evals.inputs.codec import GeneratedImages
from evals.reporting import settings
from evals.reporting.numbers import share_error, with_error
from evals.reporting.results import command_line, make_result, require_result, write_json
from jpeglm_jax.generation.manifest import read_manifest
from jpeglm_jax.generation.tokens import Tokens
from jpeglm_jax.training import checkpoint

RESULT = "digits.json"
# Shares of a result -> how they are printed.
TITLES = {
    "recognised": "recognised as the requested label",
    "recognised_first": "the same, first frame",
    "recognised_last": "the same, last frame",
    "strictly_valid": "strictly valid",
    "classifier_accuracy": "the same classifier on real digits",
}

_NUM_TRAIN = 1500  # of the 1,797 digits; the rest is the test set
_TRAIN_CLIPS, _TEST_CLIPS = 2000, 100  # of moving digits


def fit(seed: int = 0) -> tuple[svm.SVC, float]:
    """Trains a support-vector classifier of digits; returns it with its accuracy on test digits."""
    digits = datasets.load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    train, test = order[:_NUM_TRAIN], order[_NUM_TRAIN:]
    classifier = svm.SVC(gamma=0.001, C=10).fit(digits.data[train], digits.target[train])
    return classifier, float(classifier.score(digits.data[test], digits.target[test]))


def recognition(folder: epath.PathLike, out: epath.PathLike | None = None) -> dict[str, Any]:
    """Recognition of the digits in a folder that `jpeglm_jax.generate` wrote.

    Every requested document counts, also those of which nothing decodes.

    Args:
      folder: of the generation job.
      out: folder to write digits.json to; None writes nothing.

    Returns:
      A result, see `results.make_result`: `requested`, the number of documents; `strictly_valid`
      and `recognised` as the requested label, as shares of it with standard errors;
      `classifier_accuracy` on real test digits. Of clips `recognised` is in the first and in the
      last frame, `recognised_first` and `recognised_last` in each alone.

    Raises:
      SettingsError: digits.json of `out` is another program's.
      ValueError: no job, or documents without labels.
    """
    if out is not None:
        require_result(epath.Path(out) / RESULT)
    representation = representations.load(folder)
    measure = _of_clips if representation.frames > 1 else _of_images
    validity, n, shares, accuracy = measure(folder, representation)
    figures: dict[str, Any] = {"requested": n}
    for name, share in shares.items():
        figures |= {name: share, f"{name}_standard_error": share_error(share * n, n)}
    found = make_result(
        "digits",
        command_line("evals.digits", {"generated": folder, "out": out}),
        {
            "generated": str(folder),
            "n_generated": n,
            **settings.of_generation(folder),
            "validity": validity,
        },
        {**figures, "classifier_accuracy": accuracy},
        versions=checkpoint.versions(),
    )
    if out is not None:
        path = epath.Path(out)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / RESULT, found)
    return found


def _of_images(
    folder: epath.PathLike, representation: Representation
) -> tuple[str, int, dict[str, float], float]:
    """(what validity is judged from, number of documents, shares, accuracy on real digits)."""
    generated = GeneratedImages(folder, representation)
    if any(generated.label(number) < 0 for number in range(len(generated))):
        raise ValueError(f"{folder} has documents without a label; expected a job with labels")
    classifier, accuracy = fit()
    recognised = 0
    for number, image in enumerate(generated.shown(range(len(generated)))):
        if image is None:  # not recognised; the document still counts
            continue
        found = classifier.predict([digit_pixels(image)])[0]
        recognised += int(found == generated.label(number))
    requested, valid = len(generated), generated.outcome.strictly_valid
    shares = {"strictly_valid": valid / requested, "recognised": recognised / requested}
    return generated.validity_of, requested, shares, accuracy


def brightest_digit(frame: np.ndarray) -> np.ndarray:
    """The digit in a frame of moving digits: its pixels, float64 [64], 0 to 16.

    It is the square of the size of a digit with the largest sum; of several the middle one.

    Args:
      frame: uint8 [H, W] or [H, W, 3], at least of the size of a digit.
    """
    side = moving_digits.DIGIT
    grey = frame.astype(np.float64) if frame.ndim == 2 else frame.mean(axis=-1)
    sums = np.pad(grey, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    rows, columns = np.nonzero(squares >= 0.999 * squares.max())
    top, left = round(float(rows.mean())), round(float(columns.mean()))
    digit = grey[top : top + side, left : left + side]
    parts = digit.reshape(8, side // 8, 8, side // 8)
    return parts.mean(axis=(1, 3)).ravel() * (16 / 255)


def fit_clips(representation: Representation) -> tuple[svm.SVC, float]:
    """Trains a classifier of moving digits; returns it with its accuracy on real clips.

    It is trained on rendered frames, and tested on first and last frames of other clips that were
    encoded and decoded by the representation.
    """
    source = sources.open_source(f"moving_digits:{_TRAIN_CLIPS + _TEST_CLIPS}", "video")
    items = list(source.items())
    features: list[np.ndarray] = []
    labels: list[int] = []
    for item in items[:_TRAIN_CLIPS]:
        clip = moving_digits.render(int(item.locator))  # type: ignore[arg-type]
        features += [brightest_digit(clip[0]), brightest_digit(clip[-1])]
        labels += [item.label] * 2
    classifier = svm.SVC(gamma=0.001, C=10).fit(features, labels)
    right: list[bool] = []
    for item in items[_TRAIN_CLIPS:]:
        for media in representation.open(source.read(item.locator)):
            clip = representation.decode(representation.encode(media))
            found = classifier.predict([brightest_digit(clip[0]), brightest_digit(clip[-1])])
            right += (found == item.label).tolist()
    return classifier, float(np.mean(right))


def _of_clips(
    folder: epath.PathLike, representation: Representation
) -> tuple[str, int, dict[str, float], float]:
    """The same of clips."""
    lines = read_manifest(epath.Path(folder))
    if any(line["label"] < 0 for line in lines):
        raise ValueError(f"{folder} has documents without a label; expected a job with labels")
    classifier, accuracy = fit_clips(representation)
    right = np.zeros((len(lines), 2), bool)
    documents = list(Tokens(epath.Path(folder), lines))
    for number, clip in enumerate(representation.decode_batch(documents)):
        if clip is not None:  # else not recognised; the document still counts
            found = classifier.predict([brightest_digit(clip[0]), brightest_digit(clip[-1])])
            right[number] = found == lines[number]["label"]
    valid = [validity.valid for validity in representation.validate_batch(documents)]
    shares = {
        "strictly_valid": float(np.mean(valid)),
        "recognised": float(right.all(axis=1).mean()),
        "recognised_first": float(right[:, 0].mean()),
        "recognised_last": float(right[:, 1].mean()),
    }
    return "tokens, now", len(lines), shares, accuracy


def table(result: Mapping[str, Any]) -> str:
    """Formats digits.json for a terminal."""
    lines = [f"{result['requested']:,} documents"]
    for name, text in TITLES.items():
        if name in result:
            error = result.get(f"{name}_standard_error")
            share = with_error(100 * result[name], error and 100 * error)
            lines.append(f"{text:40}{share:>16} %")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    print(table(recognition(flags.FLAGS.generated, flags.FLAGS.out)))


if __name__ == "__main__":
    flags.DEFINE_string("generated", None, "Folder of generated files.", required=True)
    flags.DEFINE_string("out", None, "Folder to write digits.json to; default none.")
    command.run(main)
