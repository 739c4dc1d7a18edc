"""Fixtures of several modules: one short training run and one small set of real digits."""

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from jpeglm_jax.train import train
from tests.jpeglm_jax.conftest import digit_shards, tiny  # noqa: F401  a fixture


@pytest.fixture(scope="session")
def digits_run(digit_shards, tmp_path_factory):  # noqa: F811
    """The workdir of a run on digits of four steps, with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    changes = {"data.source": "digits", "data.shards": digit_shards}
    train(tiny(4, **{"checkpoint.every": 2, "checkpoint.keep": 5}, **changes), folder)
    return folder


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory):
    """A folder of 100 real digits as PNG files, a reference set."""
    folder = tmp_path_factory.mktemp("digit_files")
    for number, image in enumerate(datasets.load_digits().images[:100]):
        Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)).save(folder / f"{number}.png")
    return str(folder)
