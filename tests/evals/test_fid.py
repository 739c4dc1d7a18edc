"""From a training run to its numbers, by one command."""

import json
import os

import pytest

from data_pipelines.prepare import prepare
from evals import extractors, fid
from evals.evaluation import evaluate
from jpeglm_jax.train import train
from tests.jpeglm_jax.conftest import tiny


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny(2, **{"data.shards": str(folder / "shards")})
    prepare(
        source="digits",
        representation=config.representation.to_dict(),
        out=folder / "shards",
        conditional=True,
        heldout=0.15,
        workers=1,
    )
    train(config, folder)
    return folder


def test_a_run_is_sampled_once_and_every_document_counts(workdir, tmp_path):
    folder, representation = fid.sample(str(workdir), tmp_path, num=20, seed=0, step=None)
    written = os.stat(f"{folder}/manifest.jsonl").st_mtime_ns
    assert fid.sample(str(workdir), tmp_path, num=20, seed=0, step=None) == (folder, representation)
    assert os.stat(f"{folder}/manifest.jsonl").st_mtime_ns == written
    found = evaluate(
        folder,
        "digits",
        tmp_path,
        extractor=extractors.make("digits"),
        representation=representation,
    )
    codec = found["codec"]
    assert codec["requested"] == found["n_generated"] == 20
    assert codec["strictly_valid"] + codec["salvaged"] + codec["failed"] == 20
    assert codec["units"] <= codec["expected_units"] and codec["expected_units"] % 20 == 0
    floor = found["floor"]["frechet_distance"]
    assert 0 < floor < found["frechet_distance"]
    text = fid.table(found)
    assert "floor: references through the codec" in text and "20 requested" in text
    json.dumps(found, allow_nan=False)
