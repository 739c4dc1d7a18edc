"""evals.likelihood: exact log-likelihoods in windows, conditioning, summaries."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from evals.codelength.conditioning import resolve_conditioning
from evals.codelength.likelihoods import ratio_error
from evals.inputs.documents import Documents
from evals.likelihood import likelihood
from jpeglm_jax.generation.scoring import Scorer
from tests.evals.models import untrained
from tests.evals.schema import follows_schema
from tests.evals.test_evaluation import ROOT, write_photos
from tests.jpeglm_jax.generation.test_scoring import one_by_one


def test_the_marginal_is_the_mean_probability_over_all_labels(digit_shards, tmp_path):
    model = untrained()
    found = {}
    for conditioning in ("label", "none", "marginal"):
        documents = Documents(f"shards:{digit_shards}:eval", model.representation, 3)
        likelihood(model, documents, tmp_path / conditioning, conditioning=conditioning)
        text = (tmp_path / conditioning / "likelihood.jsonl").read_text()
        found[conditioning] = [json.loads(line) for line in text.splitlines()]
    documents = list(Documents(f"shards:{digit_shards}:eval", model.representation, 3))
    exact = one_by_one(model)
    for number, document in enumerate(documents):
        assert found["label"][number]["key"] == document.key
        by_label = [
            exact(model.representation.label_token(label), document.tokens) for label in range(10)
        ]
        bits = {name: lines[number]["bits"] for name, lines in found.items()}
        assert bits["label"] == pytest.approx(-by_label[document.label] / math.log(2), rel=1e-5)
        mean = np.logaddexp.reduce(by_label) - math.log(10)
        assert bits["marginal"] == pytest.approx(-mean / math.log(2), rel=1e-5)
        bos = exact(model.representation.bos, document.tokens)
        assert bits["none"] == pytest.approx(-bos / math.log(2), rel=1e-5)


def test_the_result_has_bits_errors_windows_and_rejected_images(tmp_path):
    model = untrained(seq_len=100, num_labels=0, size=32, quality=25)
    folder = write_photos(tmp_path / "photos", range(6))
    (folder / "broken.png").write_bytes(b"not an image")
    documents = Documents(str(folder), model.representation)
    found = likelihood(model, documents, tmp_path / "out", batch_size=4)
    assert follows_schema(found, tmp_path / "out" / "likelihood.json")
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
    assert any("stride of 50" in text for text in found["warnings"])
    assert any("1 images" in text and "broken.png" in text for text in found["warnings"])


def test_files_that_the_representation_could_have_written_are_used_unchanged(tmp_path):
    jpeg = representations.make("jpeg", size=32, quality=25)
    image = Image.open(write_photos(tmp_path / "a", [3]) / "003.png")
    file = jpeg.to_bytes(jpeg.encode(image))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "own.jpg").write_bytes(file)
    image.save(tmp_path / "b" / "other.jpg", quality=90)
    other, own = Documents(str(tmp_path / "b"), jpeg)
    assert jpeg.to_bytes(own.tokens) == file and own.squared_error == 0
    assert jpeg.validate(other.tokens).valid and other.squared_error > 0


def test_the_error_of_a_ratio_is_that_of_repeated_samples():
    rng = np.random.default_rng(0)
    denominators = rng.uniform(50, 150, (4000, 40))
    numerators = 3 * denominators + rng.normal(0, 20, denominators.shape)
    ratios = numerators.sum(1) / denominators.sum(1)
    stated = [ratio_error(a, b) for a, b in zip(numerators, denominators, strict=True)]
    assert np.mean(stated) == pytest.approx(ratios.std(), rel=0.05)
    assert ratio_error(numerators[0, :1], denominators[0, :1]) is None


def test_mismatched_inputs_are_rejected(digit_shards, tmp_path):
    model = untrained()
    with pytest.raises(ValueError, match="quality"):
        Documents(f"shards:{digit_shards}", representations.make("jpeg", size=16, quality=50))
    folder = str(write_photos(tmp_path / "photos", range(2)))
    photos = Documents(folder, model.representation)
    assert resolve_conditioning("auto", model.representation, photos) == "none"
    with pytest.raises(ValueError, match="has 10 labels"):
        resolve_conditioning("label", model.representation, photos)
    with pytest.raises(ValueError, match="without labels"):
        resolve_conditioning("marginal", representations.make("jpeg", size=32), photos)
    with pytest.raises(ValueError, match="stride is 81; expected 1 to 80"):
        Scorer(model, stride=81)
    with pytest.raises(ValueError, match="num is -1"):
        Documents(folder, model.representation, -1)
    (tmp_path / "photos" / "000.png").write_bytes(b"")
    (tmp_path / "photos" / "001.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 2 images"):
        likelihood(model, photos, tmp_path / "out")


def test_a_folder_without_a_run_gives_one_message(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "evals.likelihood", f"--workdir={tmp_path}", "--out=out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "workdir of a training run" in done.stderr
    assert "Traceback" not in done.stderr
