"""Images of a comparison: references with even classes, and samples that others can score."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.utils import npz
from data_pipelines.utils.files import file_facts, write_atomically
from evals.inputs.codec import GeneratedImages
from evals.inputs.images import ARRAY, LABELS, open_images


def write_references(source: str, folder: epath.Path, per_class: int) -> int:
    """Writes at most `per_class` images of each class of a source as PNG files.

    Samples are drawn with every class equally often, so references have even classes too.

    Args:
      source: a spec of images with classes.
      folder: to write: one folder per class.
      per_class: max images of a class; which ones, is the same every time.

    Returns:
      The number of images.

    Raises ValueError if the source has no classes.
    """
    real = open_images(source)
    names = list(real.label_names)
    if not names or names != sorted(names):
        raise ValueError(
            f"{source} has {'no classes' if not names else 'classes that are not sorted by name'}; "
            "expected one folder of images per class, or set references_per_class to 0"
        )
    labels = np.array([real.label(number) for number in range(len(real))])
    order = np.random.default_rng(0).permutation(len(real))
    written = 0
    for label, name in enumerate(names):
        for number in np.sort(order[labels[order] == label][:per_class]):
            key = hashlib.sha256(real.key(number).encode()).hexdigest()[:16]
            file = io.BytesIO()
            real.decode(number, real.read(number)).save(file, "PNG")
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name / f"{key}.png", file.getvalue())
            written += 1
    return written


def write_samples(samples: GeneratedImages, path: epath.Path) -> dict[str, Any]:
    """Writes samples as a sample batch, which other evaluation tools read too.

    The file has the pixels of all samples, uint8 [n, height, width, 3], as `arr_0`, and their
    classes, int64 [n], as `arr_1`. A sample of which nothing decodes is grey.

    Args:
      samples: of a model of images of one size.
      path: of the .npz file.

    Returns:
      bytes and sha256 of the file.
    """
    numbers = range(len(samples))
    shown = list(samples.shown(numbers))
    size = next((image.size for image in shown if image is not None), (1, 1))
    grey = np.full((size[1], size[0], 3), 128, np.uint8)
    pixels = np.stack([grey if image is None else np.asarray(image) for image in shown])
    labels = np.array([samples.label(number) for number in numbers], np.int64)
    npz.save(path, {ARRAY: pixels, LABELS: labels})
    return file_facts(path)
