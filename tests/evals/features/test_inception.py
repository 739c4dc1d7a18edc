"""Inception and the resize presets equal those of torch-fidelity and the other FID tools."""

import importlib.util

import jax
import numpy as np
import pytest

from evals.features import inception, resize, weights
from evals.features.base import WeightsError
from evals.features.inception import DIMENSIONS
from tests.evals.reference import GOLDEN, PARTIAL, golden_module

golden_inputs = golden_module("weights")
ALL = tuple(DIMENSIONS)
LINEAR = ("tf1", "torch", "clean")  # "pillow" is Pillow's own


@pytest.fixture(scope="module")
def tensors():
    return {
        name: golden_inputs.draw(name, shape) for name, shape in inception.required(ALL).items()
    }


@pytest.fixture(scope="module")
def network(tensors):
    return inception.load(tensors, ALL)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


def network_input(pixels):
    return (pixels[None].astype(np.float32) - 128) / 128


def apply(model, x):
    return jax.device_get(jax.jit(lambda model, x: model(x))(model, x))


def test_features_equal_those_of_torch_fidelity(network, golden):
    found = apply(network, network_input(golden_inputs.image("exact")))
    assert {name: value.shape for name, value in found.items()} == {
        name: (1, dimensions) for name, dimensions in DIMENSIONS.items()
    }
    for name, value in found.items():
        theirs = golden[f"feature_{name}"]
        assert theirs.std() > 0.3
        np.testing.assert_allclose(value[0, : theirs.size], theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", LINEAR)
@pytest.mark.parametrize("name", golden_inputs.IMAGES)
def test_resized_images_equal_those_of_the_tool_of_that_preset(golden, preset, name):
    """To 1e-5 of the range from -1 to 1 that the network sees."""
    found = resize.resized(golden_inputs.image(name), (299, 299), preset)
    theirs = golden[f"resize_{preset}_{name}"]
    np.testing.assert_allclose(
        found[list(golden_inputs.ROWS), ::23] / 128, theirs / 128, atol=1e-5, rtol=0
    )


def test_the_presets_differ(golden):
    found = [resize.resized(golden_inputs.image("small"), (299, 299), name) for name in LINEAR]
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(found[one] - found[other]).max() > 5


@pytest.mark.parametrize("preset", resize.PRESETS)
def test_resizing_keeps_a_uniform_image_and_one_of_the_right_size(preset):
    uniform = np.full((37, 61, 3), 200, np.uint8)
    np.testing.assert_allclose(resize.resized(uniform, (299, 100), preset), 200, atol=1e-4)
    image = golden_inputs.image("small")
    np.testing.assert_array_equal(resize.resized(image, image.shape[:2], preset), image)


def test_a_large_image_is_resized_in_strips(monkeypatch):
    image = golden_inputs.image("large")
    whole = resize.resized(image, (299, 299), "clean")
    monkeypatch.setattr(resize, "STRIP_SIZE", 100 * image.shape[1] * 3)
    strips = resize.resized(image, (299, 299), "clean")
    np.testing.assert_allclose(strips, whole, atol=1e-4, rtol=0)


def test_an_unknown_preset_is_rejected():
    with pytest.raises(ValueError, match="found resize preset 'nearest', expected one of tf1"):
        resize.matrix("nearest", 4, 5)


def test_the_features_of_an_image_do_not_depend_on_the_batch(tensors):
    model = inception.load(tensors, ["192"])
    images = np.concatenate(
        [network_input(golden_inputs.image("exact")), np.zeros((2, 299, 299, 3))]
    )
    together = apply(model, images.astype(np.float32))["192"]
    alone = apply(model, images[:1].astype(np.float32))["192"]
    np.testing.assert_allclose(together[:1], alone, atol=1e-5, rtol=0)


def test_only_the_needed_layers_are_built(tensors):
    assert not hasattr(inception.load(tensors, ["64"]), "Conv2d_3b_1x1")
    assert not hasattr(inception.load(tensors, ["768", "spatial"]), "Mixed_7a")
    with pytest.raises(ValueError, match=r"found features \['1024'\], expected some of 64, 192"):
        inception.load(tensors, ["1024"])


def test_a_partial_file_is_enough_for_its_features(tensors):
    beginning = {name: x for name, x in tensors.items() if name.startswith("Conv2d")}
    assert inception.available(beginning) == ["64", "192"]
    inception.load(beginning, ["192"])
    with pytest.raises(WeightsError, match=r"Mixed_5b.*missing.*and \d+ more. They cover 64, 192"):
        inception.load(beginning, ["768"])


def test_weights_of_another_network_are_rejected(tensors):
    wrong = dict(tensors)
    wrong["Conv2d_1a_3x3.conv.weight"] = np.zeros((64, 3, 7, 7), np.float32)
    with pytest.raises(WeightsError, match=r"has shape \(64, 3, 7, 7\), expected \(32, 3, 3, 3\)"):
        inception.load(wrong, ["64"])


@pytest.mark.skipif(not PARTIAL.is_file(), reason=f"no {PARTIAL.name} next to the repository")
def test_the_published_network_up_to_mixed_6e_loads():
    found = weights.read(PARTIAL)
    assert inception.available(found.tensors) == ["64", "192", "768", "spatial"]
    model = inception.load(found.tensors, ["64"])
    features = apply(model, network_input(golden_inputs.image("exact")))["64"]
    assert features.min() >= 0 and 0.01 < features.std() < 10


@pytest.mark.parity
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "torch_fidelity")),
    reason="needs torch and torch-fidelity, see tests/golden/inception/reference.py",
)
def test_parity_with_torch_fidelity(tensors, network):
    reference = golden_module("reference")
    theirs_network = reference.network(golden_inputs.draw)
    for name in golden_inputs.IMAGES:
        presets = reference.resized(golden_inputs.image(name))
        for preset, theirs in presets.items():
            ours = resize.resized(golden_inputs.image(name), (299, 299), preset)
            np.testing.assert_allclose(ours / 128, theirs / 128, atol=1e-5, rtol=0)
        pixels = np.rint(presets["clean"]).astype(np.uint8)
        ours = apply(network, network_input(pixels))
        for feature, theirs in reference.features(theirs_network, pixels).items():
            np.testing.assert_allclose(ours[feature][0], theirs, atol=1e-4, rtol=0)
