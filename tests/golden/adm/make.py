"""Writes golden.json: what ADM's evaluator computes of drawn features.

    git clone https://github.com/openai/guided-diffusion
    pip install tensorflow-cpu "scipy<1.18" numpy requests tqdm
    python tests/golden/adm/make.py guided-diffusion/evaluations/evaluator.py

It runs the evaluator's own functions, in TensorFlow on a CPU, without its network, which is not
needed for the definitions of the figures. If the test that reads the file fails, `evals/distances`
has changed: renew the file only if the evaluator has changed.
"""

import hashlib
import importlib.util
import json
import pathlib
import sys

import numpy as np
import scipy
import tensorflow.compat.v1 as tf
from vectors import CASES, SPLIT, features, logits, spatial

HERE = pathlib.Path(__file__).parent


def load(path):
    spec = importlib.util.spec_from_file_location("evaluator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LogitsAsActivations:
    """Takes the place of a session: the softmax of what are logits already."""

    def run(self, _, feed_dict):
        (x,) = feed_dict.values()
        exp = np.exp(x - x.max(1, keepdims=True))
        return exp / exp.sum(1, keepdims=True)


if __name__ == "__main__":
    tf.disable_eager_execution()
    path = pathlib.Path(sys.argv[1])
    peer = load(path)
    evaluator = peer.Evaluator.__new__(peer.Evaluator)
    evaluator.manifold_estimator = peer.ManifoldEstimator(tf.Session())
    golden = {}
    for name in CASES:
        generated, references = features(name)
        ours, theirs = (evaluator.compute_statistics(x) for x in (generated, references))
        precision, recall = evaluator.compute_prec_recall(references, generated)
        golden[name] = {
            "fid": float(ours.frechet_distance(theirs)),
            "precision": precision,
            "recall": recall,
        }
    ours, theirs = (evaluator.compute_statistics(x) for x in spatial())
    golden["sfid"] = float(ours.frechet_distance(theirs))
    evaluator.sess, evaluator.softmax, evaluator.softmax_input = LogitsAsActivations(), None, "x"
    evaluator.softmax_batch_size = 64
    golden["inception_score"] = evaluator.compute_inception_score(logits(), split_size=SPLIT)
    golden["made_with"] = {
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "evaluator_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(json.dumps(golden, indent=1))
