"""Real photographs: they come back from tokens looking like themselves, and can be learned."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from configs import jpeg
from data_pipelines import representations
from data_pipelines.media.images import normalise, open_image
from jpeglm_jax.train import train

PHOTOS = pathlib.Path(__file__).parents[4] / "shared" / "data" / "photos" / "clothing"
pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photos beside the checkout")

SIDE = 64


def photo_config():
    """The preset for photos of this size, with a model and batches for a CPU."""
    config = jpeg.get_config("imagenet64")
    config.steps, config.batch_size, config.seq_len = 300, 8, 640
    config.data.source, config.data.eval_fraction = f"folder:{PHOTOS}", 0.1
    config.model.update(layers=2, width=64, heads=2, kv_heads=2, head_dim=32, ffn=192)
    config.model.remat = "none"
    config.optimizer.update(learning_rate=3e-3, warmup_steps=20, ema=0.0)
    config.log.every = 20
    config.evaluate.update(every=100, batches=0)
    config.sample.every = 0
    config.checkpoint.every = 300
    return config


def square(image):
    """The centre of a picture, as the encoder takes it, float [64, 64, 3]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), float)


def test_photos_come_back_from_tokens_looking_like_themselves():
    representation = representations.make(**photo_config().representation)
    errors = []
    for path in sorted(PHOTOS.rglob("*.jpg"))[::12]:
        photo = normalise(open_image(path.read_bytes()), "RGB")
        tokens = representation.encode(photo)
        assert representation.validate(tokens).valid
        back = np.asarray(representation.decode(tokens), float)
        errors.append(np.mean((back - square(photo)) ** 2))
    decibels = 10 * np.log10(255**2 / np.array(errors))
    assert len(errors) > 20
    assert decibels.min() > 22
    assert np.median(decibels) > 27


@pytest.mark.slow
def test_a_few_hundred_steps_on_photos_lower_the_loss(tmp_path):
    last = train(photo_config(), tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    heldout = [line["eval/bits_per_image"] for line in lines if "eval/loss" in line]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < 0.87 * losses[0]
    assert heldout == sorted(heldout, reverse=True)
    assert last["eval/bits_per_byte"] < 8, "better than the file's own code"
