"""Bits are exact: each token is predicted once, from what the rule says."""

import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from data_pipelines import representations
from evals.codelength.scoring import Scorer, windows
from evals.inputs.documents import Documents
from evals.likelihood import choose_given, likelihood, ratio_error
from tests.evals.models import untrained
from tests.evals.test_evaluation import ROOT, write_photos


def one_by_one(model, length=80, stride=80):
    """(start token, tokens) -> log-likelihood, window by window, each in a row of its own."""
    graph, eos = model.spec.graph, model.representation.eos

    @jax.jit
    def log_probs(row):
        places = np.arange(length)[None]
        return jax.nn.log_softmax(
            nnx.merge(graph, model.params)(row[None], np.ones_like(places), places)[0]
        )

    def likelihood(start_token, tokens):
        framed = np.concatenate([[start_token], tokens, [eos]]).astype(np.int32)
        total, target, start = 0.0, 1, 0
        while target < len(framed):
            row = np.zeros(length, np.int32)  # what comes after a token does not change it
            part = framed[start : start + length]
            row[: len(part)] = part
            found = np.asarray(log_probs(row))
            while target < len(framed) and target <= start + length:
                total += float(found[target - 1 - start, framed[target]])
                target += 1
            start += stride
        return total

    return likelihood


@pytest.mark.parametrize(
    ("places", "length", "stride"), [(1, 8, 4), (8, 8, 4), (9, 8, 4), (50, 8, 3), (50, 8, 8)]
)
def test_windows_predict_each_place_once_with_the_context_that_is_stated(places, length, stride):
    found = list(windows(places, length, stride))
    counted = [
        place
        for window in found
        for place in range(window.start + window.context, window.start + window.length)
    ]
    assert counted == list(range(places))
    assert found[0].context == 0 and all(window.length <= length for window in found)
    assert all(window.context == length - stride for window in found[1:])


@pytest.mark.parametrize("devices", [1, 8])
def test_documents_of_all_lengths_have_the_likelihood_of_the_definition(devices):
    model = untrained(seq_len=24, devices=devices)
    rng = np.random.default_rng(0)
    documents = [(256, rng.integers(0, 256, size).astype(np.uint16)) for size in (5, 23, 0, 9, 60)]
    found = list(Scorer(model, batch_size=2, stride=10)(documents))
    exact = one_by_one(model, length=24, stride=10)
    wanted = [exact(*document) for document in documents]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    again = list(Scorer(model, batch_size=4, stride=10)(documents[::-1]))
    np.testing.assert_allclose(again[::-1], found, rtol=1e-5)


def test_the_marginal_is_the_mean_probability_over_all_labels(digit_shards, tmp_path):
    model = untrained()
    found = {}
    for given in ("label", "none", "marginal"):
        documents = Documents(f"shards:{digit_shards}:eval", model.representation, 3)
        likelihood(model, documents, tmp_path / given, given=given)
        text = (tmp_path / given / "likelihood.jsonl").read_text()
        found[given] = [json.loads(line) for line in text.splitlines()]
    documents = list(Documents(f"shards:{digit_shards}:eval", model.representation, 3))
    exact = one_by_one(model)
    for place, document in enumerate(documents):
        assert found["label"][place]["key"] == document.key
        by_label = [
            exact(model.representation.label_token(label), document.tokens) for label in range(10)
        ]
        of = {given: lines[place]["bits"] for given, lines in found.items()}
        assert of["label"] == pytest.approx(-by_label[document.label] / math.log(2), rel=1e-5)
        mean = np.logaddexp.reduce(by_label) - math.log(10)
        assert of["marginal"] == pytest.approx(-mean / math.log(2), rel=1e-5)
        bos = exact(model.representation.bos, document.tokens)
        assert of["none"] == pytest.approx(-bos / math.log(2), rel=1e-5)


def test_a_report_states_bits_errors_windows_and_what_was_set_aside(tmp_path):
    model = untrained(seq_len=100, num_labels=0, size=32, quality=25)
    folder = write_photos(tmp_path / "photos", range(6))
    (folder / "broken.png").write_bytes(b"not an image")
    documents = Documents(str(folder), model.representation)
    found = likelihood(model, documents, tmp_path / "out", batch_size=4)
    assert found == json.loads((tmp_path / "out" / "likelihood.json").read_text())
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "likelihood.jsonl").read_text().splitlines()
    ]
    bits = np.array([line["bits"] for line in lines])
    stream = np.array([line["bytes"] for line in lines])
    assert found["n_images"] == len(lines) == 6
    assert found["bits_per_image"] == pytest.approx(bits.mean())
    assert found["bits_per_image_standard_error"] == pytest.approx(bits.std(ddof=1) / 6**0.5)
    assert found["bits_per_byte"] == pytest.approx(bits.sum() / stream.sum())
    assert found["bits_per_pixel"] == pytest.approx(bits.mean() / 32**2)
    assert found["stream_bits_per_image"] == pytest.approx(8 * stream.mean())
    assert 20 < found["psnr_db"] < 45
    assert [name for name, _ in found["rejected"]] == ["broken.png"]
    assert found["n_longer_than_context"] == 6
    assert (found["settings"]["context"], found["settings"]["stride"]) == (100, 50)
    assert any("move on by 50" in text for text in found["warnings"])
    assert any("1 images" in text and "broken.png" in text for text in found["warnings"])


def test_files_that_are_the_representations_own_are_taken_to_the_byte(tmp_path):
    jpeg = representations.make("jpeg", size=32, quality=25)
    image = Image.open(write_photos(tmp_path / "a", [3]) / "003.png")
    file = jpeg.to_bytes(jpeg.encode(image))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "own.jpg").write_bytes(file)
    image.save(tmp_path / "b" / "other.jpg", quality=90)
    other, own = Documents(str(tmp_path / "b"), jpeg)
    assert jpeg.to_bytes(own.tokens) == file and own.squared_error == 0
    assert jpeg.validate(other.tokens).valid and other.squared_error > 0


def test_the_error_of_a_ratio_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    below = rng.uniform(50, 150, (4000, 40))
    above = 3 * below + rng.normal(0, 20, below.shape)
    ratios = above.sum(1) / below.sum(1)
    stated = [ratio_error(a, b) for a, b in zip(above, below, strict=True)]
    assert np.mean(stated) == pytest.approx(ratios.std(), rel=0.05)
    assert ratio_error(above[0, :1], below[0, :1]) is None


def test_what_does_not_fit_is_refused(digit_shards, tmp_path):
    model = untrained()
    with pytest.raises(ValueError, match="quality"):
        Documents(f"shards:{digit_shards}", representations.make("jpeg", size=16, quality=50))
    folder = str(write_photos(tmp_path / "photos", range(2)))
    photos = Documents(folder, model.representation)
    assert choose_given("auto", model.representation, photos) == "none"
    with pytest.raises(ValueError, match="knows 10 labels"):
        choose_given("label", model.representation, photos)
    with pytest.raises(ValueError, match="without labels"):
        choose_given("marginal", representations.make("jpeg", size=32), photos)
    with pytest.raises(ValueError, match="stride is 81; expected 1 to 80"):
        Scorer(model, stride=81)
    with pytest.raises(ValueError, match="num is -1"):
        Documents(folder, model.representation, -1)
    (tmp_path / "photos" / "000.png").write_bytes(b"")
    (tmp_path / "photos" / "001.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 2 images"):
        likelihood(model, photos, tmp_path / "out")


def test_a_folder_that_is_no_run_ends_in_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "evals.likelihood", f"--workdir={tmp_path}", "--out=out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "expected the workdir of a training run" in done.stderr
    assert "Traceback" not in done.stderr
