"""Images and representations for tests of pixels."""

import numpy as np
from PIL import Image

from data_pipelines.representations import make
from data_pipelines.representations.pixel.clusters import train

RAW = [
    dict(clusters=0, mode="L", size=6),
    dict(clusters=0, mode="RGB", size=6),
    dict(clusters=0, mode="RGB", size=(5, 8)),
]
CLUSTERED = [
    dict(clusters=8, mode="L", size=6),
    dict(clusters=20, mode="RGB", size=(5, 8)),
]


def noise(width, height, mode="RGB", seed=0):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Image.fromarray(pixels)


def pixels_of(image):
    return np.asarray(image).reshape(image.width * image.height, -1)


def representation(num_labels=2, **options):
    """With clusters of a noisy image, if it has any."""
    made = make("pixel", num_labels=num_labels, **options)
    return made.trained([made.training_sample(noise(40, 40))]) if made.needs_training else made


def trained(channels, clusters, seed=0):
    rng = np.random.default_rng(seed)
    return train(rng.integers(0, 256, (2000, channels), np.uint8), clusters)
