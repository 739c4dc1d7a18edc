"""Weights and images that both sides of the comparison can make, from NumPy alone."""

import zlib

import numpy as np

IMAGES = {"small": (32, 48), "exact": (299, 299), "large": (331, 420)}
ROWS = (0, 1, 150, 298)  # of the resized images that are kept


def draw(name, shape):
    """The tensor of this name in the PyTorch port's naming, float32.

    Convolutions keep the size of what they are given (He et al., 2015), so that all layers matter.
    """
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("conv.weight"):
        return random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
    if name.endswith(("running_var", "bn.weight")):
        return random.uniform(0.8, 1.2, shape).astype(np.float32)
    return random.normal(0, 0.1 if "bn." in name else 0.02, shape).astype(np.float32)


def image(name):
    """uint8 [height, width, 3]: blocks of colour, edges and noise."""
    height, width = IMAGES[name]
    random = np.random.RandomState(zlib.crc32(name.encode()))
    blocks = random.randint(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(pixels + random.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)


def features():
    """(generated, references, logits): float32 [200, 24] twice, in part the same, and [200, 30]."""
    random = np.random.RandomState(5)
    mixing = random.normal(0, 0.3, (24, 24))
    generated = np.maximum(random.normal(0.2, 1, (200, 24)) @ mixing + 0.5, 0)
    references = np.maximum(random.normal(0, 1.2, (200, 24)) @ mixing + 0.4, 0)
    logits = random.normal(0, 3, (200, 30))
    return tuple(x.astype(np.float32) for x in (generated, references, logits))
