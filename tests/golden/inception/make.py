"""Writes golden.npz: what torch-fidelity computes, with drawn weights, of one drawn image, and
the metrics that it and pytorch-fid compute of drawn features.

    python tests/golden/inception/make.py        (`reference.py` tells what it needs)

Of every feature the first 64 numbers are kept, and of the resized images a few rows. If the test
that reads them fails, the network or a resize has changed: renew the file only if the reference
itself has changed.
"""

import pathlib

import numpy as np
import torch
import weights
from reference import features, metrics, network, resized
from weights import IMAGES, ROWS, draw, image

HERE = pathlib.Path(__file__).parent
KEPT = 64

if __name__ == "__main__":
    torch.set_num_threads(1)
    found = features(network(draw), image("exact"))
    golden = {f"feature_{name}": value[:KEPT] for name, value in found.items()}
    for name in IMAGES:
        for preset, pixels in resized(image(name)).items():
            golden[f"resize_{preset}_{name}"] = pixels[list(ROWS), ::23]
    for name, number in metrics(*weights.features()).items():
        golden[f"metric_{name}"] = np.array(number)
    np.savez_compressed(HERE / "golden.npz", **golden)
    print({name: (float(value.mean()), float(value.std())) for name, value in golden.items()})
