"""DINOv2 equals that of `transformers`."""

import json

import jax
import numpy as np
import pytest

from evals.features import dinov2
from evals.features.base import WeightsError
from evals.features.weights import Weights
from tests.evals.reference import GOLDEN, golden_module

HERE = GOLDEN.parent / "dinov2"


@pytest.fixture(scope="module")
def random_weights():
    return golden_module("weights", HERE)


@pytest.fixture(scope="module")
def golden():
    with np.load(HERE / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tensors(random_weights, golden):
    shapes = json.loads(str(golden["shapes"]))
    return {name: random_weights.draw(name, shape) for name, shape in shapes.items()}


def test_class_tokens_equal_those_of_transformers(random_weights, golden, tensors):
    found = jax.jit(dinov2.class_token)(dinov2.load(tensors), random_weights.images())
    assert golden["class_token"].std() > 0.5
    np.testing.assert_allclose(found, golden["class_token"], atol=1e-4, rtol=0)


def test_it_is_an_extractor_of_images_of_any_size(tensors):
    extractor = dinov2.extractor(Weights(tensors, "0" * 64, "model.safetensors"))
    image = np.random.RandomState(0).randint(0, 256, (40, 31, 3)).astype(np.uint8)
    prepared = extractor.prepare(image)
    assert prepared.shape == (224, 224, 3) and prepared.dtype == np.float32
    batch = np.stack([prepared] * jax.local_device_count())
    assert extractor.apply(batch)["class_token"].shape == (len(batch), 128)


def test_weights_of_another_network_are_rejected(tensors):
    del (rest := dict(tensors))["encoder.layer.1.mlp.fc1.weight"]
    with pytest.raises(
        WeightsError, match=r"no encoder.layer.1.mlp.fc1.weight; expected .* DINOv2"
    ):
        dinov2.load(rest)
