"""A fixture of several modules: a small set of real digits."""

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory):
    """A folder of 100 real digits as PNG files, a reference set."""
    folder = tmp_path_factory.mktemp("digit_files")
    for number, image in enumerate(datasets.load_digits().images[:100]):
        Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)).save(folder / f"{number}.png")
    return str(folder)
