"""DINOv2 equals that of `transformers` and that of Meta's code."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from evals.features import dinov2, weights
from evals.features.base import WeightsError
from evals.features.weights import Weights
from tests.evals.reference import GOLDEN, golden_module

HERE = GOLDEN.parent / "dinov2"
FORMS = (
    *("hf", "hf_giant", "hf_registers"),
    *("meta", "meta_giant", "meta_registers", "meta_giant_registers"),
)
drawn = golden_module("weights", HERE)


@pytest.fixture(scope="module")
def golden():
    with np.load(HERE / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tensors(golden):
    shapes = json.loads(str(golden["shapes"]))
    return {
        form: {name: drawn.draw(name, tuple(shape)) for name, shape in shapes[form].items()}
        for form in FORMS
    }


@pytest.mark.parametrize("form", FORMS)
def test_class_tokens(golden, tensors, form):
    found = jax.jit(dinov2.class_token)(dinov2.load(tensors[form]), drawn.images())
    expected = golden[f"class_token_{form}"]
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_it_is_an_extractor_of_images_of_any_size(tensors):
    rows, columns, channels = np.indices((40, 31, 3))
    image = (100 + 60 * np.sin(0.2 * rows + 0.3 * columns + channels)).astype(np.uint8)
    inputs = []
    for preset in ("clean", "pillow"):
        found = Weights(tensors["meta_registers"], "0" * 64, "dinov2_vits14_reg4_pretrain.pth")
        extractor = dinov2.extractor(found, preset)
        assert extractor.settings["resize"] == preset
        prepared = extractor.prepare(image)
        assert prepared.shape == (224, 224, 3) and prepared.dtype == np.float32
        inputs.append(prepared)
    batch = np.stack([inputs[0]] * jax.local_device_count())
    assert extractor.apply(batch)["class_token"].shape == (len(batch), 128)
    difference = np.abs(inputs[0] - inputs[1]).max() * 255 * 0.229
    assert 0.4 < difference < 2  # of rounding to 8 bits


@pytest.mark.parametrize("form", ["hf", "meta"])
def test_weights_of_another_network_are_rejected(tensors, form):
    name = {"hf": "encoder.layer.1.mlp.fc1.weight", "meta": "blocks.1.mlp.fc1.weight"}[form]
    del (rest := dict(tensors[form]))[name]
    with pytest.raises(
        WeightsError, match=r"no encoder.layer.1.mlp.fc1.weight; expected .* DINOv2"
    ):
        dinov2.load(rest)
    other = {**tensors[form], name: np.zeros((7, 128), np.float32)}
    with pytest.raises(WeightsError, match=r"shapes do not fit.* DINOv2"):
        dinov2.load(other)
    with pytest.raises(WeightsError, match="expected a file of DINOv2"):
        dinov2.load({"blocks.0.attn.qkv.weight": np.zeros((5, 2), np.float32)})


@pytest.mark.parity
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, the extra [parity]",
)
def test_parity_with_a_file_of_transformers(tmp_path):
    import torch
    import transformers

    options = {**drawn.CONFIG, "num_register_tokens": 2, "use_swiglu_ffn": True}
    config = transformers.Dinov2WithRegistersConfig(**options)
    model = transformers.Dinov2WithRegistersModel(config).eval()
    state = {name: torch.randn(value.shape) * 0.05 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    model.save_pretrained(tmp_path)
    found = dinov2.load(weights.read(tmp_path / "model.safetensors").tensors)
    with torch.no_grad():
        pixels = torch.from_numpy(drawn.images().transpose(0, 3, 1, 2))
        expected = model(pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(
        jax.jit(dinov2.class_token)(found, drawn.images()), expected, atol=1e-4, rtol=0
    )
