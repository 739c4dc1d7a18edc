"""Writes golden.npz: the logits of a network of pytorch-i3d's shape in PyTorch, with drawn weights.

    python tests/golden/i3d/make.py        (needs torch)

The network is written here after the port's published structure: convolutions without bias and
with TensorFlow's "same" padding, batch norm with epsilon 0.001, pools that pad with zeros. If the
test that reads the file fails, the network has changed: renew it only if the reference is wrong.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import weights

HERE = pathlib.Path(__file__).parent
WEIGHTS = {name: torch.from_numpy(value) for name, value in weights.tensors().items()}


def padded(x, window, stride):
    """TensorFlow's "same": as much as the last window sticks out, the odd one at the end."""
    pads = []
    for size, k, s in zip(x.shape[2:], window, stride, strict=True):
        total = max(k - s, 0) if size % s == 0 else max(k - size % s, 0)
        pads.append((total // 2, total - total // 2))
    return F.pad(x, [side for pair in reversed(pads) for side in pair])


def unit(name, x, stride=1):
    kernel = WEIGHTS[f"{name}.conv3d.weight"]
    x = F.conv3d(padded(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
    norm = [WEIGHTS[f"{name}.bn.{part}"] for part in ("running_mean", "running_var")]
    affine = [WEIGHTS[f"{name}.bn.{part}"] for part in ("weight", "bias")]
    return F.relu(F.batch_norm(x, *norm, *affine, training=False, eps=0.001))


def pool(x, window, stride):
    return F.max_pool3d(padded(x, window, stride), window, stride)


def mixed(name, x):
    pooled = pool(x, (3, 3, 3), (1, 1, 1))
    return torch.cat(
        [
            unit(f"{name}.b0", x),
            unit(f"{name}.b1b", unit(f"{name}.b1a", x)),
            unit(f"{name}.b2b", unit(f"{name}.b2a", x)),
            unit(f"{name}.b3b", pooled),
        ],
        1,
    )


def logits(clip):
    x = unit("Conv3d_1a_7x7", torch.from_numpy(clip).permute(0, 4, 1, 2, 3), 2)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = mixed("Mixed_3c", mixed("Mixed_3b", x))
    x = pool(x, (3, 3, 3), (2, 2, 2))
    for block in "bcdef":
        x = mixed(f"Mixed_4{block}", x)
    x = pool(x, (2, 2, 2), (2, 2, 2))
    x = mixed("Mixed_5c", mixed("Mixed_5b", x))
    x = F.avg_pool3d(x, (2, 7, 7), 1)
    x = F.conv3d(x, WEIGHTS["logits.conv3d.weight"], WEIGHTS["logits.conv3d.bias"])
    return x.mean((2, 3, 4))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        found = logits(weights.clip()).numpy()
    np.savez_compressed(HERE / "golden.npz", logits=found)
    print(found.mean(), found.std())
