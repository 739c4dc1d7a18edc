"""Weights and a clip that both sides of the comparison can make, from NumPy alone."""

import zlib

import numpy as np

# Channels of each block: in, and out of its branches b0, b1a, b1b, b2a, b2b, b3b.
BLOCKS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def units():
    """Name -> (channels in, channels out, kernel side) of every convolution but the last."""
    found = {
        "Conv3d_1a_7x7": (3, 64, 7),
        "Conv3d_2b_1x1": (64, 64, 1),
        "Conv3d_2c_3x3": (64, 192, 3),
    }
    for block, (entering, (b0, b1a, b1b, b2a, b2b, b3b)) in BLOCKS.items():
        found[f"{block}.b0"] = (entering, b0, 1)
        found[f"{block}.b1a"] = (entering, b1a, 1)
        found[f"{block}.b1b"] = (b1a, b1b, 3)
        found[f"{block}.b2a"] = (entering, b2a, 1)
        found[f"{block}.b2b"] = (b2a, b2b, 3)
        found[f"{block}.b3b"] = (entering, b3b, 1)
    return found


def tensors():
    """The state dict, float32, by the names of pytorch-i3d."""
    found = {}
    for name, (entering, leaving, side) in units().items():
        random = np.random.RandomState(zlib.crc32(name.encode()))
        shape = (leaving, entering, side, side, side)
        scale = np.sqrt(2 / np.prod(shape[1:]))
        found[f"{name}.conv3d.weight"] = random.normal(0, scale, shape).astype(np.float32)
        found[f"{name}.bn.weight"] = random.uniform(0.8, 1.2, leaving).astype(np.float32)
        found[f"{name}.bn.bias"] = random.normal(0, 0.1, leaving).astype(np.float32)
        found[f"{name}.bn.running_mean"] = random.normal(0, 0.1, leaving).astype(np.float32)
        found[f"{name}.bn.running_var"] = random.uniform(0.8, 1.2, leaving).astype(np.float32)
    random = np.random.RandomState(1)
    found["logits.conv3d.weight"] = random.normal(0, 0.03, (400, 1024, 1, 1, 1)).astype(np.float32)
    found["logits.conv3d.bias"] = random.normal(0, 0.1, 400).astype(np.float32)
    return found


def clip():
    """float32 [1, 10, 224, 224, 3], samples from -1 to 1: blocks of colour that move, and noise."""
    random = np.random.RandomState(2)
    blocks = random.uniform(-1, 1, (30, 30, 3)).repeat(8, 0).repeat(8, 1)
    frames = np.stack([blocks[time : time + 224, :224] for time in range(10)])
    return np.clip(frames + random.normal(0, 0.05, frames.shape), -1, 1).astype(np.float32)[None]
