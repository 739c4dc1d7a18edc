"""Writes logits.npz: what `transformers`' LlamaForCausalLM computes in float32.

    pip install torch transformers numpy && python tests/golden/llama/make.py

The weights are drawn by `weights.py` beside this, so the file holds logits alone. If the test that
reads them fails, the model has changed: renew the file only if `transformers` itself changed.
"""

import pathlib

import numpy as np
import torch
import transformers
from weights import CASES, TOKENS, draw

HERE = pathlib.Path(__file__).parent


def logits(case):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**case)).eval()
    # Of tied weights this names only one.
    for name, value in model.named_parameters():
        value.data = torch.from_numpy(draw(name, tuple(value.shape)))
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez(HERE / "logits.npz", **{name: logits(case) for name, case in CASES.items()})
    print("transformers", transformers.__version__, "torch", torch.__version__)
