"""Small DINOv2 networks that both sides of the comparison can make, from NumPy alone."""

import zlib

import numpy as np

CONFIG = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 266,
    "patch_size": 14,
}


REGISTERS = 4


def draw(name, shape):
    """The tensor of this name in `transformers`' or Meta's naming, float32."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if "norm" in name or "lambda" in name or "gamma" in name:
        return random.normal("bias" not in name, 0.2, shape).astype(np.float32)
    spread = 1.0 if len(shape) == 3 else 1.5 * shape[-1] ** -0.5
    return random.normal(0, spread, shape).astype(np.float32)


def images():
    """float32 [2, 224, 224, 3], as normalised images are."""
    return np.random.RandomState(3).normal(0, 1, (2, 224, 224, 3)).astype(np.float32)
