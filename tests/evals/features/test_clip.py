"""CLIP and its tokenizer equal those of `transformers`."""

import importlib.util
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from evals.features import weights
from evals.features.base import WeightsError
from evals.features.clip import network
from evals.features.clip.tokenizer import ClipTokenizer
from evals.features.weights import Weights
from tests.evals.reference import GOLDEN, golden_module

HERE = GOLDEN.parent / "clip"
drawn = golden_module("weights", HERE)


@pytest.fixture(scope="module")
def golden():
    with np.load(HERE / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tensors(golden):
    shapes = json.loads(str(golden["shapes"]))
    return {name: drawn.draw(name, tuple(shape)) for name, shape in shapes.items()}


def tokenizer():
    return ClipTokenizer(drawn.vocabulary(), drawn.MERGES)


def test_image_embeddings(golden, tensors):
    found = jax.jit(network.image_embedding)(network.load(tensors, "image"), drawn.images())
    assert golden["image_embedding"].std() > 0.5
    np.testing.assert_allclose(found, golden["image_embedding"], atol=1e-4, rtol=0)


def test_text_embeddings(golden, tensors):
    apply = jax.jit(network.text_embedding, static_argnames="end")
    found = apply(network.load(tensors, "text"), golden["tokens"], end=tokenizer().end)
    assert golden["text_embedding"].std() > 0.5
    np.testing.assert_allclose(found, golden["text_embedding"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["tokens", "long_tokens"])
def test_tokens(golden, name):
    expected = golden[name]
    assert len(expected) == len(drawn.TEXTS) > 10
    for text, ids in zip(drawn.TEXTS, expected, strict=True):
        found = tokenizer().encode(text, expected.shape[1])
        assert found.tolist() == ids.tolist(), text


def test_the_tokenizer_is_read_from_either_form_of_its_files(tmp_path):
    pairs = drawn.MERGES
    for folder, merges in (
        ("strings", [" ".join(pair) for pair in pairs]),
        ("lists", [list(pair) for pair in pairs]),
    ):
        (tmp_path / folder).mkdir()
        model = {"type": "BPE", "vocab": drawn.vocabulary(), "merges": merges}
        (tmp_path / folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart/vocab.json").write_text(json.dumps(drawn.vocabulary()))
    lines = ["#version: 0.2", *map(" ".join, pairs), ""]
    (tmp_path / "apart/merges.txt").write_text("\n".join(lines))
    for folder in ("strings", "lists", "apart"):
        found = ClipTokenizer.load(tmp_path / folder)
        assert found.sha256 == tokenizer().sha256
        assert (found.encode("the cat", 9) == tokenizer().encode("the cat", 9)).all()
    with pytest.raises(WeightsError, match="no tokenizer.json"):
        ClipTokenizer.load(tmp_path)
    (tmp_path / "apart/vocab.json").write_text("{")
    with pytest.raises(WeightsError, match="damaged"):
        ClipTokenizer.load(tmp_path / "apart")
    with pytest.raises(WeightsError, match="startoftext"):
        ClipTokenizer({"a": 0}, [])


def test_images_are_prepared_as_in_cmmd(tensors):
    extractor = network.extractor(Weights(tensors, "0" * 64, "model.safetensors"))
    assert extractor.settings["size"] == 56 and extractor.settings["resize"] == "pillow"
    image = np.random.RandomState(0).randint(0, 256, (90, 61, 3)).astype(np.uint8)
    square = Image.fromarray(image).crop((0, 14, 61, 75)).resize((56, 56), Image.Resampling.BICUBIC)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = (np.asarray(square) / 255 - mean) / deviation
    prepared = extractor.prepare(image)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected, atol=1e-5)
    batch = np.stack([prepared] * jax.local_device_count())
    assert extractor.apply(batch)["image_embedding"].shape == (len(batch), drawn.PROJECTION)


def test_the_architecture_is_named_by_the_shapes(tensors):
    params = network.load(tensors, "image")
    assert network.architecture(params) == "ViT 128 x 3/14-56"
    large = {
        "patch": np.zeros((14, 14, 3, 1024)),
        "positions": np.zeros((577, 1024)),
        "layers": {"norm1": (np.zeros((24, 1024)), None)},
    }
    assert network.architecture(large) == "ViT-L/14-336"


def test_weights_of_another_network_are_rejected(tensors, tmp_path):
    del (rest := dict(tensors))["vision_model.encoder.layers.1.mlp.fc1.weight"]
    with pytest.raises(WeightsError, match=r"no vision_model.encoder.layers.1.mlp.fc1.weight"):
        network.load(rest, "image")
    assert network.load(rest, "text")
    other = {**tensors, "text_projection.weight": np.zeros((5, 7), np.float32)}
    with pytest.raises(WeightsError, match="shapes do not fit"):
        network.load(other, "text")
    network.require_openais(tmp_path / "model.safetensors")  # no config.json
    for config, accepted in (
        ({"vision_config": {"hidden_size": 1024, "num_attention_heads": 16}}, True),
        ({"vision_config": {"hidden_act": "gelu"}}, False),
        ({"text_config": {"hidden_size": 1280, "num_attention_heads": 16}}, False),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        if accepted:
            network.require_openais(tmp_path / "model.safetensors")
        else:
            with pytest.raises(WeightsError, match="expected quick_gelu and 64"):
                network.require_openais(tmp_path / "model.safetensors")


@pytest.mark.parity
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, the extra [parity]",
)
def test_parity_with_transformers(tmp_path, monkeypatch):
    """A whole job's parts: weights and tokenizer files as `transformers` writes them."""
    monkeypatch.setitem(sys.modules, "weights", drawn)  # which the script imports
    make = golden_module("make", HERE)
    theirs, _ = make.model(tmp_path)
    make.tokenizer().save_pretrained(tmp_path)
    ours = ClipTokenizer.load(tmp_path)
    rng = np.random.RandomState(0)
    letters = list("aehtnd 's.,!?0123éßΣ日\t-_")
    texts = ["".join(rng.choice(letters, rng.randint(1, 60))) for _ in range(300)]
    options = {"padding": "max_length", "truncation": True, "max_length": 16}
    expected = np.array(make.tokenizer()(texts, **options)["input_ids"], np.int32)
    found = np.stack([ours.encode(text, 16) for text in texts])
    np.testing.assert_array_equal(found, expected)
    tensors = weights.read(tmp_path / "model.safetensors").tensors
    of_images, of_texts = make.embeddings(theirs, drawn.images(), found)
    image = jax.jit(network.image_embedding)(network.load(tensors, "image"), drawn.images())
    apply = jax.jit(network.text_embedding, static_argnames="end")
    text = apply(network.load(tensors, "text"), found, end=ours.end)
    np.testing.assert_allclose(image, of_images, atol=1e-4, rtol=0)
    np.testing.assert_allclose(text, of_texts, atol=1e-4, rtol=0)
