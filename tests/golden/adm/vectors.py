"""Drawn features and logits that both sides of the comparison make, from NumPy alone."""

import numpy as np

# name -> (generated, references, dimensions, scale)
CASES = {
    "half": (150, 170, 48, 1.0),  # distances fit half precision
    "single": (150, 170, 48, 90.0),  # some overflow: they are in single precision
    "collapsed": (120, 120, 16, 1.0),
    "far": (250, 240, 64, 0.25),  # far from the origin: half precision rounds distances together
}
SPATIAL = (60, 70, 21)
LOGITS = (230, 40)
SPLIT = 100


def features(name):
    """(generated, references), float32: not negative and of different scales, as Inception's."""
    n, m, d, scale = CASES[name]
    rng = np.random.RandomState(sorted(CASES).index(name))
    weights = np.geomspace(0.2, 1, d) * scale
    generated = np.maximum(rng.normal(0.3, 1, (n, d)), 0) * weights
    references = np.maximum(rng.normal(0.2, 1.1, (m, d)), 0) * weights
    if name == "collapsed":
        generated = references[:1] + 0.05 * generated
    if name == "far":
        generated, references = generated + 2, references + 2
    return generated.astype(np.float32), references.astype(np.float32)


def spatial():
    n, m, d = SPATIAL
    rng = np.random.RandomState(11)
    return rng.normal(0, 1, (n, d)).astype(np.float32), rng.normal(0.1, 2, (m, d)).astype("f4")


def logits():
    return np.random.RandomState(12).normal(0, 2, LOGITS).astype(np.float32)
