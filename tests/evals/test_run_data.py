"""What evaluations read of a run: the eval split of all its folders; runs of clips are refused."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import avc
from data_pipelines import representations
from data_pipelines.prepare import prepare
from data_pipelines.shards.reader import Shards
from evals import fid
from evals.completion import completion
from evals.compression import compression
from evals.evaluation import evaluate
from evals.features import extractors
from evals.follow import follow
from evals.inputs.documents import Documents
from evals.inputs.images import open_images
from evals.likelihood import eval_split, likelihood
from evals.suite import suite
from jpeglm_jax.generation import options
from jpeglm_jax.training import checkpoint, streamed_checkpoint
from jpeglm_jax.training.streamed_checkpoint import Streamed
from tests.evals.models import DIGITS, untrained
from tests.jpeglm_jax.conftest import tiny


@pytest.fixture(scope="module")
def folders(digit_shards, tmp_path_factory):
    """Two folders of digits with eval splits of other sizes, whose keys are partly the same."""
    second = tmp_path_factory.mktemp("second")
    prepare(
        source="digits",
        representation=tiny().representation.to_dict(),
        out=second,
        conditional=True,
        eval_fraction=0.05,
        workers=1,
    )
    return [digit_shards, str(second)]


def of_run(model, shards):
    config = ConfigDict(model.config.to_dict())
    config.data.shards = shards
    return dataclasses.replace(model, config=config)


def test_the_eval_split_of_several_folders_is_the_eval_split_of_each(folders, tmp_path):
    model = untrained()
    spec = eval_split(of_run(model, ", ".join(folders)), tmp_path)
    found = list(Documents(spec, model.representation))
    parts = [Shards(folder, "eval") for folder in folders]
    assert len(found) == sum(map(len, parts)) and all(map(len, parts))
    assert len({document.key for document in found}) == len(found)
    first, second = found[3], found[len(parts[0]) + 3]
    for document, part in ((first, parts[0]), (second, parts[1])):
        np.testing.assert_array_equal(document.tokens, part.read([3])[0])
        assert document.label == part.labels[3]
        assert document.codec_bytes == part.codec_bytes[3]
        assert document.key == f"{part.folder}/{part.key(3)}"
    # Prompts of a generation job are read from the same documents.
    media = list(options.open_media(model.representation, f"shards:{','.join(folders)}"))
    assert len(media) == len(found)


def test_likelihood_and_compression_of_a_run_over_several_folders(folders, tmp_path):
    model = untrained()
    spec = eval_split(of_run(model, ",".join(folders)), tmp_path)
    documents = Documents(spec, model.representation, num=24)
    scored = likelihood(model, documents, tmp_path, batch_size=8)
    assert scored["n_images"] == 24 and scored["settings"]["images"] == spec
    packed = compression(model, documents, tmp_path, batch_size=8)
    assert packed["n_images"] == 24
    assert packed["bits_per_image"] == pytest.approx(scored["bits_per_image"])


def test_several_folders_are_a_reference_set(folders, digit_files, tmp_path):
    references = f"shards:{','.join(folders)}:eval"
    result = evaluate(digit_files, references, tmp_path, extractor=extractors.make("digits"))
    assert result["n_references"] == len(open_images(references))


def test_folders_without_an_eval_split_or_without_shards_are_named(folders, tmp_path):
    model = untrained()
    with pytest.raises(ValueError, match="there is no folder nowhere .* --images"):
        eval_split(of_run(model, f"{folders[0]},nowhere"), tmp_path)
    (tmp_path / "data").mkdir()
    assert eval_split(of_run(model, ""), tmp_path) == f"shards:{tmp_path / 'data'}:eval"
    with pytest.raises(ValueError, match="'other'"):
        open_images(f"shards:{folders[0]}:other")


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
    """The workdir of a run on clips, as evaluations read it before they load weights."""
    workdir = tmp_path_factory.mktemp("clips")
    config = avc.get_config("tiny")
    representation = representations.make(**config.representation)
    zeros = np.zeros(4, np.float32)
    params = {"x": Streamed((4,), np.dtype(np.float32), (4,), lambda: [(slice(None), zeros)])}
    meta = {
        "config": config.to_dict(),
        "representation": representation.to_config(),
        "step": 0,
        "versions": checkpoint.versions(),
    }
    streamed_checkpoint.save(workdir, params, meta)
    representation.save(workdir)
    return workdir


def test_jobs_for_images_refuse_a_run_of_clips_before_they_sample(clip_run, digit_files, tmp_path):
    extractor = extractors.make("digits")
    out = tmp_path / "out"
    refused = pytest.raises(ValueError, match="'avc' is of clips of 5 frames.*evals.video")
    with refused:
        fid.sample(str(clip_run), out, num=4, seed=0, step=None)
    with refused:
        suite(clip_run, digit_files, out, extractor, num=4)
    with refused:
        follow(clip_run, digit_files, extractor=extractor, num=4)
    with refused:
        model = dataclasses.replace(
            untrained(), representation=checkpoint.describe(clip_run).representation
        )
        documents = Documents(digit_files, representations.make("jpeg", **DIGITS))
        completion(model, documents, digit_files, out, extractor=extractor)
    assert not out.exists()
