"""Prompts say how much of the images they hold; ratios with the same prompts are one column."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from evals import prompting
from evals.inputs.documents import Documents
from evals.reporting import settings
from jpeglm_jax.training import checkpoint
from jpeglm_jax.training.data import run_folders
from tests.evals.models import untrained
from tests.evals.test_evaluation import write_photos
from tests.jpeglm_jax.conftest import tiny


@pytest.fixture(scope="module")
def model():
    return untrained(seq_len=400, num_labels=0, size=32, quality=25)  # two rows of MCUs


@pytest.fixture(scope="module")
def documents(model, tmp_path_factory):
    photos = write_photos(tmp_path_factory.mktemp("photos") / "photos", range(3))
    return Documents(str(photos), model.representation)


def test_columns_are_named_by_the_share_that_is_given(model, documents):
    found = prompting.make_prompts(model, documents, [0.25, 0.5, 0.6, 0.75, 0.0], "none")
    assert [column.name for column in found.columns] == ["0.5", prompting.UNCONDITIONAL]
    half, nothing = found.columns
    assert half.to_json() == {
        "prompt_share": 0.5,
        "prompt_share_min": 0.5,
        "prompt_share_max": 0.5,
        "ratios": [0.5, 0.6, 0.75],
    }
    assert nothing.share == 0 and list(found.empty) == [0.25]
    requests = prompting.requests(model.representation, found.originals, half)
    assert {request.share for request in requests} == {0.5}
    with pytest.raises(ValueError, match=r"a ratio of 0\.25 holds no whole unit"):
        prompting.make_prompts(model, documents, [0.25], "none")


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.26, 0.5, 0.99, 1.0])
def test_the_share_of_a_prompt_counts_its_mcus(ratio):
    jpeg = representations.make("jpeg", size=64, quality=25)  # four rows of four MCUs
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    tokens = jpeg.encode(jpeg.fit(Image.fromarray(pixels)))
    share = jpeg.prompt_share(tokens, ratio)
    assert share == int(ratio * 4) / 4
    complete = jpeg.validate(jpeg.prompt(tokens, ratio)).units
    assert share * 16 - 1 <= complete <= share * 16  # the last byte may be shared


def test_images_are_those_of_the_run_or_others(digits_run, tmp_path, monkeypatch):
    model = checkpoint.load(digits_run)
    assert settings.images_are(model, "digits") == "source of the training images"
    monkeypatch.chdir(tmp_path)
    other = dataclasses.replace(model, config=tiny(4, **{"data.source": "folder:photos"}))
    for name in ("photos", "photos/", f"{tmp_path}/photos/cats", f"{tmp_path}"):
        assert settings.images_are(other, f"folder:{name}") == "source of the training images"
    assert settings.images_are(other, "folder:photos2") == "other images"
    folders = ",".join(run_folders(model.config.data, digits_run))
    assert settings.images_are(model, f"shards:{folders}:eval") == "eval split"
    assert settings.images_are(model, f"shards:{folders}:train") == "training images"
    assert settings.images_are(model, "shards:/elsewhere:eval") == "other images"
    assert settings.images_are(model, "folder:/photos") == "other images"
