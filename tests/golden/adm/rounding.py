"""Prints precision and recall of drawn vectors as wide as Inception's: how far rounding decides.

python tests/golden/adm/rounding.py                                    this project's
python tests/golden/adm/rounding.py PATH/evaluations/evaluator.py      ADM's, see make.py
"""

import pathlib
import sys

import numpy as np

N, DIMENSIONS, RANK = 1000, 2048, 60


def vectors(seed, mean):
    """Float32 [N, DIMENSIONS]: not negative, correlated, of squared norms of some 560."""
    mixing = np.random.RandomState(0).normal(size=(RANK, DIMENSIONS)) / np.sqrt(RANK)
    rng = np.random.RandomState(seed)
    mixed = rng.normal(mean, 1, (N, RANK)) @ mixing
    return np.maximum(0.25 + 0.45 * mixed + 0.25 * rng.normal(size=(N, DIMENSIONS)), 0).astype("f4")


if __name__ == "__main__":
    generated, references = vectors(1, 0.12), vectors(2, 0.0)
    if len(sys.argv) > 1:
        from make import load

        peer = load(pathlib.Path(sys.argv[1]))
        peer.tf.disable_eager_execution()
        evaluator = peer.Evaluator.__new__(peer.Evaluator)
        evaluator.manifold_estimator = peer.ManifoldEstimator(peer.tf.Session())
        print("evaluator", evaluator.compute_prec_recall(references, generated))
    else:
        from evals.distances import adm, neighbours

        print("preset adm", adm.precision_recall(generated, references))
        print("exact", neighbours.precision_recall(generated, references))
