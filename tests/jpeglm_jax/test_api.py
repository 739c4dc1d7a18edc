"""Three lines of Python: a run's model samples, completes and scores documents in memory."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jpeglm_jax
from data_pipelines import representations
from data_pipelines.shards.reader import Shards
from data_pipelines.sources import open_source
from evals.inputs.documents import Documents
from evals.likelihood import likelihood
from jpeglm_jax.api import Model, Samples
from jpeglm_jax.generation import job, prompts
from jpeglm_jax.generation.manifest import read_manifest
from jpeglm_jax.generation.sampling import Sample, SamplingParams
from jpeglm_jax.generation.tokens import Tokens
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel.sharding import make_mesh
from tests.jpeglm_jax.conftest import tiny
from tests.toy import ToyRepresentation

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(digits_run):
    return jpeglm_jax.load(digits_run)


@pytest.fixture(scope="module")
def documents(digit_shards):
    """Twelve documents of the eval split: tokens, labels."""
    shards = Shards(digit_shards, "eval")
    return shards.read(range(12)), shards.labels[:12].tolist()


def untrained(representation, seq_len):
    """A model of any representation, with initial weights."""
    config = tiny(3, seq_len=seq_len)
    spec = ModelSpec(model_config(config.model, representation.vocab_size, "cpu"))
    mesh = make_mesh({"fsdp": 1}, devices=jax.devices()[:1])
    params = spec.init_on(mesh, 1)
    return Model(TrainedModel(config, representation, spec, mesh, params, 0))


def test_importing_the_package_imports_no_jax():
    code = "import sys, jpeglm_jax; print(callable(jpeglm_jax.load), 'jax' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["True", "False"]


def test_a_checkpoint_is_chosen_by_its_step(model, digits_run, tmp_path):
    assert model.step == 4 and jpeglm_jax.load(digits_run, 2).step == 2
    with pytest.raises(ValueError, match="step 3"):
        jpeglm_jax.load(digits_run, 3)
    with pytest.raises(ValueError, match="checkpoints"):
        jpeglm_jax.load(tmp_path)


def test_samples_are_media_in_order_with_files_that_viewers_open(model):
    samples = model.sample(6, label=3, constrain=True)
    assert len(samples) == 6 and samples.valid.all() and samples.complete.all()
    assert samples.labels.tolist() == [3] * 6
    for image, file, tokens in zip(samples, samples.files, samples.tokens, strict=True):
        assert image.size == (16, 16) and image.mode == "L"
        np.testing.assert_array_equal(Image.open(io.BytesIO(file)), image)
        np.testing.assert_array_equal(model.representation.from_bytes(file), tokens)
    part = samples[2:4]
    np.testing.assert_array_equal(part[1], samples[3])
    assert part.files == samples.files[2:4]
    np.testing.assert_array_equal(part.log_likelihood, samples.log_likelihood[2:4])
    grid = Image.open(io.BytesIO(samples._repr_png_()))
    np.testing.assert_array_equal(grid, samples.grid())
    assert grid.size[0] > part.grid(columns=1).size[0]
    assert samples[:0]._repr_png_() is None


def test_the_same_documents_as_in_a_job(model, tmp_path):
    samples = model.sample(12, seed=5, batch_size=8)
    assert samples.labels.tolist() == [*range(10), 0, 1]
    requests = prompts.label_requests(model.representation, samples.labels.tolist())
    params = SamplingParams.from_config(model.config.sample)
    job.generate(model.trained, tmp_path, requests, params, seed=5, batch_size=8)
    lines = read_manifest(tmp_path)
    for ours, theirs in zip(samples.tokens, Tokens(tmp_path, lines), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name in ("log_likelihood", "valid", "complete"):
        assert getattr(samples, name).tolist() == [line[name] for line in lines]
    for file, line in zip(samples.files, lines, strict=True):
        assert file == (tmp_path / line["file"]).read_bytes() if line["file"] else file is None
    other = model.sample(12, seed=0, batch_size=8)
    assert any(not np.array_equal(a, b) for a, b in zip(samples.tokens, other.tokens, strict=True))


def test_labels_and_sampling_options(model):
    greedy = model.sample(4, label=[7, 7, 2, 2], temperature=0)
    assert greedy.labels.tolist() == [7, 7, 2, 2]
    for first, second in ((0, 1), (2, 3)):
        np.testing.assert_array_equal(greedy.tokens[first], greedy.tokens[second])
    assert (model.sample(2, guidance=2.0, top_k=5).log_likelihood < 0).all()
    for options, message in (
        ({"label": 10}, "label is 10"),
        ({"label": [1, 2, 3]}, "3 labels for 4 documents"),
        ({"top_p": 2.0}, "top_p is 2.0"),
        ({"constrain": True, "size": (32, 32)}, "32"),
    ):
        with pytest.raises(ValueError, match=message):
            model.sample(4, **options)
    with pytest.raises(ValueError, match="num"):
        model.sample(0)


@pytest.mark.parametrize("constrain", [False, True])
def test_completions_begin_with_the_given_part(model, documents, constrain):
    (tokens, *_), (label, *_) = documents
    prompt = model.representation.prompt(tokens, 0.5)
    completed = model.complete(tokens, ratio=0.5, num=3, label=label, constrain=constrain)
    assert len(completed) == 3 and 0 < len(prompt) < len(tokens)
    for found in completed.tokens:
        np.testing.assert_array_equal(found[: len(prompt)], prompt)
    assert completed.labels.tolist() == [label] * 3
    assert completed.valid.all() or not constrain
    by_label = model.complete(tokens, num=3, label=[label, 0, label], constrain=constrain)
    np.testing.assert_array_equal(by_label.tokens[0], completed.tokens[0])
    np.testing.assert_array_equal(by_label.tokens[2], completed.tokens[2])
    assert (model.complete(tokens, num=2).labels == -1).all()


def test_an_image_that_is_completed_is_fitted_as_in_training(model):
    image = Image.effect_noise((90, 70), 60).convert("RGB")
    (found,) = model.complete(image, ratio=0.5).tokens
    prompt = model.representation.prompt(model.representation.encode(image), 0.5)
    np.testing.assert_array_equal(found[: len(prompt)], prompt)
    with pytest.raises(ValueError, match="prefix_ratio is 2"):
        model.complete(image, ratio=2)


def test_log_likelihoods_are_those_of_the_evaluation(model, documents, digit_shards, tmp_path):
    where = Documents(f"shards:{digit_shards}:eval", model.representation)
    first = [(each.tokens, each.label) for each, _ in zip(where, range(12), strict=False)]
    tokens, labels = documents
    for (theirs, label), ours, our_label in zip(first, tokens, labels, strict=True):
        np.testing.assert_array_equal(theirs, ours)
        assert label == our_label
    for conditioning, label in (("label", labels), ("none", None)):
        likelihood(model.trained, where, tmp_path / conditioning, conditioning=conditioning)
        lines = (tmp_path / conditioning / "likelihood.jsonl").read_text().splitlines()[:12]
        bits = np.array([json.loads(line)["bits"] for line in lines])
        nats = model.log_likelihood(tokens, label=label)
        assert nats.dtype == np.float64
        np.testing.assert_allclose(nats, -bits * math.log(2), rtol=1e-5)


def test_log_likelihoods_of_samples_are_those_of_sampling(model):
    samples = model.sample(8, constrain=True)
    found = model.log_likelihood(samples, label=samples.labels.tolist())
    np.testing.assert_allclose(found, samples.log_likelihood, rtol=1e-4)


def test_paths_images_and_tokens_are_the_same_document(model, tmp_path):
    path = tmp_path / "own.jpg"
    image = Image.effect_noise((16, 16), 60)
    tokens = model.representation.encode(image)
    path.write_bytes(model.representation.to_bytes(tokens))
    image.save(tmp_path / "pixels.png")
    found = model.log_likelihood([path, str(tmp_path / "pixels.png"), image, tokens], label=1)
    np.testing.assert_allclose(found, found[0], rtol=1e-6)
    assert model.log_likelihood([]).shape == (0,)
    (tmp_path / "text.jpg").write_text("no image")
    for documents, message in (
        (str(path), "expected a list"),
        ([tmp_path / "text.jpg"], "image"),
        ([np.zeros((16, 16, 3), np.uint8)], "a PIL image"),
        ([np.array([0, 268])], "expected 0 to 267"),
        ([np.array([0.5])], "float64"),
    ):
        with pytest.raises(ValueError, match=message):
            model.log_likelihood(documents)
    with pytest.raises(FileNotFoundError):
        model.log_likelihood([tmp_path / "missing.jpg"])


def test_a_model_never_trained_without_labels_warns(model, documents):
    config = model.config.copy_and_resolve_references()
    config.data.label_dropout = 0.0
    trained = model.trained
    other = Model(
        TrainedModel(config, trained.representation, trained.spec, trained.mesh, trained.params, 4)
    )
    with pytest.warns(UserWarning, match="without a label"):
        other.log_likelihood(documents[0][:2])


def test_a_representation_without_files():
    toy = untrained(ToyRepresentation(num_labels=0), 40)
    samples = toy.sample(5, constrain=True)
    assert samples.valid.all() and samples.files == [None] * 5
    assert (samples.labels == -1).all()
    assert all(image.size == (4, 4) for image in samples)
    image = Image.linear_gradient("L")
    completed = toy.complete(image, ratio=0.5, num=2, constrain=True)
    for tokens in completed.tokens:
        np.testing.assert_array_equal(tokens[:8], toy.representation.encode(image)[:8])
    assert (toy.log_likelihood([image, *samples.tokens]) < 0).all()
    with pytest.raises(ValueError, match="without labels"):
        toy.sample(1, label=0)


def test_a_document_that_cannot_be_decoded_is_none():
    toy = ToyRepresentation()
    documents = [Sample(0, np.full(16, 1), True, -1.0), Sample(1, np.full(16, toy.bos), True, -2.0)]
    samples = Samples(toy, documents, [-1, -1])
    assert samples[0].size == (4, 4) and samples[1] is None
    assert samples.valid.tolist() == [True, False]
    assert samples.grid().getpixel((samples.grid().width - 1, 0)) != (85, 85, 85)


def test_clips():
    options = {"size": (32, 32), "fps": 8, "frames": 4, "qp": 40, "strip": "headers"}
    avc = representations.make("avc", num_labels=0, **options)
    source = open_source("moving_digits:2", "video")
    item = next(iter(source.items()))
    clip = avc.fit(next(avc.open(source.read(item.locator))))
    tokens = avc.encode(clip)
    model = untrained(avc, len(tokens) + 40)
    completed = model.complete(clip, ratio=0.5, num=2, constrain=True)
    prompt = avc.prompt(tokens, 0.5)
    for document, frames, file in zip(completed.tokens, completed, completed.files, strict=True):
        np.testing.assert_array_equal(document[: len(prompt)], prompt)
        assert frames.dtype == np.uint8 and frames.shape[1:] == (32, 32, 3)
        np.testing.assert_array_equal(avc.decode(avc.from_bytes(file)), frames)
    assert completed.grid().size[0] > completed.grid().size[1]
    nats = model.log_likelihood([clip, tokens])
    assert nats[0] == pytest.approx(nats[1]) and nats[0] < 0
