"""Fixtures of several modules."""

import pytest

from data_pipelines.prepare import prepare
from jpeglm_jax.train import train
from tests.jpeglm_jax.conftest import digit_shards, tiny  # noqa: F401  a fixture


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The workdir of a run on digits, two steps long."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny(2, **{"data.source": "digits"})
    prepare(
        source="digits",
        representation=config.representation.to_dict(),
        out=folder / "data",
        conditional=True,
        eval_fraction=0.15,
        workers=1,
    )
    config.data.shards = str(folder / "data")
    train(config, folder)
    return folder
