"""Writes golden.npz: the class tokens that `transformers`' Dinov2Model computes in float32.

    pip install torch transformers numpy && python tests/golden/dinov2/make.py

The weights are drawn by `weights.py` beside this, so the file holds their names and shapes and the
result alone. If the test that reads them fails, the model has changed: renew the file only if
`transformers` itself changed.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from weights import CONFIG, draw, images

HERE = pathlib.Path(__file__).parent
# What transformers 5 calls these in memory, and what its files and all published ones call them.
RENAMED = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def published(name):
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    return name


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**CONFIG)).eval()
    state = model.state_dict()
    shapes = {published(name): list(value.shape) for name, value in state.items()}
    drawn = {name: draw(published(name), tuple(value.shape)) for name, value in state.items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in drawn.items()})
    with torch.no_grad():
        found = model(torch.from_numpy(images().transpose(0, 3, 1, 2))).last_hidden_state[:, 0]
    np.savez_compressed(
        HERE / "golden.npz", class_token=found.numpy(), shapes=np.array(json.dumps(shapes))
    )
    print("transformers", transformers.__version__, float(found.std()))
