"""Every preset is a valid configuration, and those of the paper have its numbers."""

import math

import jax
import numpy as np
import pytest

from configs import avc, jpeg, pixel, vq
from data_pipelines import representations
from data_pipelines.media.augment import Augment
from data_pipelines.representations.base import TokenizedRepresentation
from jpeglm_jax.model import flops
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel.sharding import BATCH_KEYS, make_mesh
from jpeglm_jax.tokenizer.flops import encode_flops_per_image, train_flops_per_image
from jpeglm_jax.tokenizer.images import seq_len
from jpeglm_jax.tokenizer.settings import check_numbers
from jpeglm_jax.tokenizer.step import make_step, tokenizer_config
from jpeglm_jax.training import optimizer
from jpeglm_jax.training.step import TrainStep, check_mesh


def train_step_of(config, vocab_size=320):
    model = model_config(config.model, vocab_size, "tpu")
    return TrainStep(ModelSpec(model), config.optimizer, config.steps, 1)


PRESETS = [(module, preset) for module in (jpeg, avc, pixel, vq) for preset in module.PRESETS]


@pytest.mark.parametrize(("module", "preset"), PRESETS)
def test_a_preset_is_a_valid_configuration(module, preset):
    config = module.get_config(preset)
    options = config.representation.to_dict()
    if module is vq:
        assert options.pop("weights") == "", "trained by the run"
        assert not config.data.train_tokenizer.vocab_size
        assert config.tokenizer.representation.size == options["size"]
    made = representations.make(**options)
    tokenized = isinstance(made, TokenizedRepresentation)
    assert tokenized or not config.data.train_tokenizer.vocab_size
    Augment(**config.data.augment)
    assert optimizer.schedule(config.optimizer, config.steps)(config.steps) > 0
    train_step = train_step_of(config)
    check_mesh(config, train_step.model.config, make_mesh({"fsdp": 4}, devices=jax.devices()[:4]))


@pytest.mark.parametrize("preset", vq.TOKENIZERS)
def test_a_preset_of_a_tokenizer_is_a_valid_configuration(preset):
    config = vq.get_config(preset)
    check_numbers(config)
    pixels = representations.make(**config.representation)
    assert seq_len(pixels) > 0
    step = make_step(config, tokenizer_config(config, pixels), "gpu")
    assert optimizer.schedule(config.optimizer, config.steps)(config.steps) > 0
    assert train_flops_per_image(step) > 3 * encode_flops_per_image(step) > 0
    Augment(**config.data.augment)


def test_the_papers_preset_has_its_size_and_its_step_can_be_traced():
    config = jpeg.get_config("7b")
    train_step = train_step_of(config)
    state = train_step.abstract_state()
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    layer = 4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096
    assert count == 32 * layer + 2 * 320 * 4096 + 4096
    rows = (config.batch_size, config.seq_len)
    batch = {key: jax.ShapeDtypeStruct(rows, np.int32) for key in BATCH_KEYS}
    for key in ("weights", "codec_bytes"):
        batch[key] = jax.ShapeDtypeStruct(rows, np.float32)
    mesh = make_mesh({"fsdp": 8})
    with jax.set_mesh(mesh):
        after, metrics = jax.eval_shape(train_step.update, state, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["nll"].shape == ()
    shardings = train_step.state_shardings(mesh)
    held = sum(
        math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    )
    assert held == pytest.approx(12 * count / 8, rel=1e-3), "weights and two moments, split 8 ways"


def test_the_flops_of_the_papers_preset():
    model = model_config(jpeg.get_config("7b").model, 320, "tpu")
    per_sequence = flops.train_flops_per_token(model, 12_288) * 12_288
    assert per_sequence == pytest.approx(4.78e14 + 1.19e14, rel=0.01)


@pytest.mark.parametrize("preset", pixel.PRESETS)
def test_an_image_of_pixels_fits_a_sequence(preset):
    config = pixel.get_config(preset)
    made = representations.make(**config.representation)
    # With a start and an end, which --constrain needs room for.
    assert made.length + 2 <= config.seq_len < 1.2 * made.length
    assert (made.num_dimensions > 0) == preset.endswith("bytes")
    assert not config.data.train_tokenizer.vocab_size, "pixels have no tokenizer to train"


@pytest.mark.parametrize("module", [jpeg, pixel])
def test_an_unknown_preset_is_refused(module):
    with pytest.raises(ValueError, match="'8b'.*digits.*cifar10"):
        module.get_config("8b")


def test_the_papers_video_preset_has_its_representation_and_context():
    config = avc.get_config("7b")
    made = representations.make(**config.representation)
    assert made == representations.make("avc"), "the defaults are the paper's"
    assert config.seq_len == 2**15
    assert config.steps / 2 * config.batch_size * config.seq_len * 1.01 > 42e9
    with pytest.raises(ValueError, match="configs/avc.py .*'8b'.*tiny, small"):
        avc.get_config("8b")
