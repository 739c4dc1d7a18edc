"""Prompts equal those of JPEG-LM's released script, token for token.

tests/golden/prompts documents how the expected prompts were made. Do not change them if this fails.
"""

import importlib.util
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.representations import make

GOLDEN = pathlib.Path(__file__).parents[3] / "golden"
_SPEC = importlib.util.spec_from_file_location("pictures", GOLDEN / "prompts" / "pictures.py")
pictures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(pictures)


@pytest.fixture(scope="module")
def prompts():
    return np.load(GOLDEN / "prompts" / "prompts.npz")


def test_the_goldens_hold_every_picture_ratio_and_model(prompts):
    names = {tuple(name.split("/")) for name in prompts}
    assert len(names) == 2 * len(pictures.SIZES) * len(pictures.RATIOS)
    lengths = [len(prompts[f"trained_here/square/{ratio}"]) for ratio in pictures.RATIOS]
    assert lengths == sorted(set(lengths)) and lengths[-1] > 3000


@pytest.mark.parametrize("model", ["trained_here", "dummy_prefix"])
@pytest.mark.parametrize("name", pictures.SIZES)
def test_prompts_equal_those_of_the_released_script(prompts, name, model):
    representation = make("jpeg", tokenizer=str(GOLDEN / "tokenizer" / f"{model}.model"))
    tokens = representation.encode(pictures.draw(name))
    for ratio in pictures.RATIOS:
        ours = [representation.bos, *representation.prompt(tokens, ratio)]
        assert ours == prompts[f"{model}/{name}/{ratio}"].tolist()


def test_the_comment_of_a_photo_is_omitted_where_the_script_copies_it():
    comment = b"CREATOR: gd-jpeg v1.0, quality = 90"
    file = io.BytesIO()
    pictures.draw("square").save(file, "JPEG", comment=comment)
    photo = Image.open(file)
    plain = Image.fromarray(np.asarray(photo))

    def script(image):
        saved = io.BytesIO()
        image.resize((256, 256), Image.Resampling.BILINEAR).save(
            saved, "JPEG", quality=25, subsampling="4:2:0", streamtype=2, restart_marker_blocks=1
        )
        return saved.getvalue()

    assert len(script(photo)) - len(script(plain)) == 4 + len(comment) == 39
    representation = make("jpeg")
    ours = representation.encode(photo)
    np.testing.assert_array_equal(ours, representation.encode(plain))
    assert b"\xff\xfe" not in representation.to_bytes(ours)[:600]
