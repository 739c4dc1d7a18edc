"""The CLIP score of images and captions, and CMMD, from CLIP's embeddings."""

import json

import numpy as np
import pytest
from PIL import Image

from evals import metrics
from evals.clip_score import clip_score, embed
from evals.distances.kernels import cmmd, mmd_gaussian
from evals.features.clip import network
from evals.features.clip.tokenizer import ClipTokenizer
from evals.features.weights import Weights
from evals.inputs import captions
from evals.inputs.captions import CaptionError
from evals.inputs.images import open_images
from evals.report import report
from evals.reporting.results import Evaluation, SettingsError
from evals.sections.kinds import KINDS
from tests.evals.features.test_clip import HERE, drawn
from tests.evals.reporting.reader import read
from tests.evals.schema import follows_schema


@pytest.fixture(scope="module")
def weights():
    with np.load(HERE / "golden.npz") as arrays:
        shapes = json.loads(str(arrays["shapes"]))
    tensors = {name: drawn.draw(name, tuple(shape)) for name, shape in shapes.items()}
    return Weights(tensors, "0" * 64, "model.safetensors")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.RandomState(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(3):
            pixels = rng.randint(0, 256, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "cat" / "damaged.png").write_bytes(b"no image")
    return open_images(str(folder))


def test_the_score_is_the_mean_cosine_of_images_and_captions(weights, shown, tmp_path):
    tokenizer = ClipTokenizer(drawn.vocabulary(), drawn.MERGES)
    texts = captions.of_classes(shown, "a photo of a {}")
    assert texts == ["a photo of a cat"] * 4 + ["a photo of a dog"] * 3
    found = clip_score(shown, texts, tmp_path, weights=weights, tokenizer=tokenizer)
    assert json.loads((tmp_path / "clip_score.json").read_text()) == found
    assert found["n_generated"] == 6 and found["n_captions"] == 2
    assert follows_schema(found)
    report([], [Evaluation.read(tmp_path, tuple(KINDS))], tmp_path / "report.html")
    card = read((tmp_path / "report.html").read_text()).by_id("summary").one("li", "card")
    assert "6 images, 2 captions" in card.text
    assert [name for name, _ in found["rejected"]["generated"]] == ["cat/damaged.png"]
    made = network.extractor(weights)
    readable = [n for n in range(7) if "damaged" not in shown.key(n)]
    pixels = [np.asarray(shown.decode(n, shown.read(n))) for n in readable]
    params = network.load(weights.tensors, "image")
    ours = np.array(network.image_embedding(params, np.stack(list(map(made.prepare, pixels)))))
    theirs = embed(["a photo of a cat", "a photo of a dog"], weights, tokenizer)[[0, 0, 0, 1, 1, 1]]
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.max() > 0.02  # those below zero count as zero
    scores = 100 * np.maximum(cosines, 0)
    assert found["clip_score"] == pytest.approx(scores.mean(), rel=1e-4)
    error = scores.std(ddof=1) / 6**0.5
    assert found["clip_score_standard_error"] == pytest.approx(error, rel=1e-3)
    (tmp_path / "clip_score.json").write_text("{}")
    with pytest.raises(SettingsError):
        clip_score(shown, texts, tmp_path, weights=weights, tokenizer=tokenizer)


def test_captions_are_read_by_name_or_by_line(shown, tmp_path):
    keys = [shown.key(number) for number in range(len(shown))]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({key: f"of {key}" for key in keys}))
    assert captions.read(path, shown) == [f"of {key}" for key in keys]
    path.write_text(json.dumps({key: f"of {key}" for key in keys[1:]}))
    with pytest.raises(CaptionError, match=rf"1 of 7 images, the first is '{keys[0]}'"):
        captions.read(path, shown)
    lines = tmp_path / "captions.txt"
    lines.write_text("\n".join("abcdefg") + "\n")
    assert captions.read(lines, shown) == list("abcdefg")
    lines.write_text("one\n")
    with pytest.raises(CaptionError, match="has 1 lines, expected .* 7 images"):
        captions.read(lines, shown)
    with pytest.raises(CaptionError, match="cannot be read"):
        captions.read(tmp_path / "absent.json", shown)


def test_captions_of_classes_need_a_template_and_names(shown):
    assert captions.of_classes(shown, "{}!", ["a", "b"])[-1] == "b!"
    with pytest.raises(CaptionError, match="template 'a photo'"):
        captions.of_classes(shown, "a photo")
    with pytest.raises(CaptionError, match="label 1, and there are 1 names"):
        captions.of_classes(shown, "{}", ["a"])


def test_cmmd_keeps_the_kernel_of_each_vector_with_itself():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (50, 8)), rng.normal(0.3, 1, (60, 8))
    units = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]

    def kernel(a, b):
        return np.exp(-np.square(a[:, None] - b[None]).sum(2) / 200).mean()

    own = kernel(units[0], units[0]) + kernel(units[1], units[1])
    expected = 1000 * (own - 2 * kernel(*units))
    found = cmmd(x, y)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.value > mmd_gaussian(x, y).value and found.standard_error > 0


@pytest.mark.parametrize(
    ("architecture", "named"), [("ViT-L/14-336", True), ("ViT-B/32-224", False)]
)
def test_cmmd_is_of_one_network_only(architecture, named):
    rng = np.random.default_rng(0)
    settings = {"architecture": architecture, "weights_sha256": "00"}
    metadata = {"extractor": "clip", "main": "image_embedding", "settings": settings}

    def side(n):
        values = rng.normal(0, 1, (n, 6)).astype(np.float32)
        found = metrics.FeatureSet(
            {"image_embedding": values}, list(map(str, range(n))), values, {}, [], metadata
        )
        return metrics.Side(f"{n} images", metrics.Statistics.of(values), metadata, found)

    values = metrics.compare(side(30), side(40)).values
    assert ("cmmd" in values) == named and "mmd_gaussian" in values
