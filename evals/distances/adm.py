"""Inception score, precision and recall as ADM's evaluator defines them, for `--preset=adm`.

The evaluator of Dhariwal and Nichol (arXiv 2105.05233; github.com/openai/guided-diffusion,
evaluations/evaluator.py) computed the figures of most papers on ImageNet. Its FID and sFID are
those of `frechet`. It differs from `frechet.inception_score` and `neighbours` in two ways:

  Inception score       consecutive parts of 5,000 images, not shuffled; the last may be smaller
  precision and recall  squared distances in half precision, computed in blocks of 10,000 x 10,000
                        images; a block in which one of them overflows is in single precision

Half precision has eleven significant bits, so the distances of neighbours are often equal, and
precision and recall differ from exact ones. Sums are in single precision here. TensorFlow adds
squares in half precision, in an order that depends on the device, so that its precision and recall
differ between devices, and from these, by a few images in a thousand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from evals.distances.frechet import Estimate
from evals.distances.neighbours import PrecisionRecall
from evals.distances.statistics import check_features
from evals.features.base import FeatureError

SPLIT = 5000  # images of a part of the Inception score
NEIGHBOURS = 3
BLOCK = 10_000  # images of each set whose distances are computed together
_ROWS = 1024  # of a block in memory at once

# The features of the statistics in the evaluator's files (mu, sigma; mu_s, sigma_s), as the
# metadata of a `FeatureSet` that states no weights.
FEATURES: Mapping[str, Any] = {
    "extractor": "inception",
    "main": "2048",
    "settings": {"dims": 2048, "resize": "tf1"},
    "computed_by": "ADM's evaluator",
}


def are_features_of(extractor: str, main: str, settings: Mapping[str, Any]) -> bool:
    """Whether features with this metadata are those of the evaluator, weights apart."""
    stated = FEATURES["settings"]
    return (extractor, main) == (FEATURES["extractor"], FEATURES["main"]) and all(
        settings.get(name) == value for name, value in stated.items()
    )


def inception_score(logits: np.ndarray, split: int = SPLIT) -> Estimate:
    """The mean score of consecutive parts, with its standard error over the parts.

    Args:
      logits: [n, classes], float, without the network's final bias.
      split: images of a part.

    Raises FeatureError for logits that are not finite.
    """
    logits = check_features(logits, min_count=1)
    scores = []
    for start in range(0, len(logits), split):
        part = np.asarray(logits[start : start + split], np.float64)
        part = part - part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        scores.append(np.exp((p * (log_p - np.log(p.mean(0)))).sum(1).mean()))
    error = np.std(scores, ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else float("nan")
    return Estimate(float(np.mean(scores)), float(error), len(logits))


def precision_recall(
    generated: np.ndarray, references: np.ndarray, k: int = NEIGHBOURS, block: int = BLOCK
) -> PrecisionRecall:
    """The share of each set inside the balls of the other, see `neighbours`.

    Args:
      generated: [n, d], float.
      references: [m, d], float.
      k: the neighbour whose distance is the radius of a ball.
      block: images of each set whose distances have one precision.

    Raises FeatureError unless n and m exceed k.
    """
    generated, references = (
        check_features(features, min_count=1).astype(np.float32)
        for features in (generated, references)
    )
    if generated.shape[1] != references.shape[1]:
        raise FeatureError(
            f"found features of {generated.shape[1]} and of {references.shape[1]} dimensions"
        )
    radii = _radii(references, k, block), _radii(generated, k, block)
    of_references = np.zeros(len(references), bool)
    of_generated = np.zeros(len(generated), bool)
    for found in _blocks(references, generated, block):
        rows, columns = found.rows, found.columns
        of_references[rows] |= (found.squares <= radii[1][columns]).any(1)
        of_generated[columns] |= (found.squares <= radii[0][rows, None]).any(0)
    return PrecisionRecall(float(of_generated.mean()), float(of_references.mean()))


def _radii(features: np.ndarray, k: int, block: int) -> np.ndarray:
    """Squared distance of each vector to its k-th nearest other one, [n]."""
    if len(features) <= k:
        raise FeatureError(
            f"found {len(features)} images, expected more than {k} for the distance to the "
            f"{k}-th nearest neighbour"
        )
    # The k + 1 smallest so far, of every block of columns; the vector itself is among them.
    smallest = np.full((len(features), k + 1), np.inf, np.float32)
    for found in _blocks(features, features, block):
        candidates = np.concatenate([smallest[found.rows], found.squares], axis=1)
        smallest[found.rows] = np.partition(candidates, k, axis=1)[:, : k + 1]
    return smallest[:, k]


class _Squares(NamedTuple):
    """Squared distances, float32, of the rows of one set to the columns of another."""

    rows: slice
    columns: slice
    squares: np.ndarray


def _blocks(x: np.ndarray, y: np.ndarray, block: int) -> Iterator[_Squares]:
    for top in range(0, len(x), block):
        for left in range(0, len(y), block):
            rows, columns = x[top : top + block], y[left : left + block]
            with np.errstate(over="ignore", invalid="ignore"):
                half = all(np.isfinite(part).all() for _, part in _strips(rows, columns, half=True))
                for start, part in _strips(rows, columns, half=half):
                    yield _Squares(
                        slice(top + start, top + start + len(part)),
                        slice(left, left + len(columns)),
                        part,
                    )


def _strips(x: np.ndarray, y: np.ndarray, *, half: bool) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, squared distances in half or single precision) of a few rows at a time."""

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float16).astype(np.float32) if half else values

    x, y = rounded(x), rounded(y)
    of_x, of_y = (rounded(rounded(np.square(z)).sum(1)) for z in (x, y))
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        twice = rounded(2 * rounded(x[rows] @ y.T))
        squares = rounded(rounded(of_x[rows, None] - twice) + of_y)
        yield start, np.maximum(squares, 0)
