"""ADM's files: statistics with images as references, sample batches on either side."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from evals.distances import adm
from evals.distances.frechet import frechet
from evals.distances.statistics import Statistics
from evals.evaluation import evaluate
from evals.features.base import Extractor, FeatureError
from evals.features.features import extract
from evals.inputs.images import open_images
from tests.evals.plugin import patches

SETTINGS = {"dims": 2048, "resize": "tf1", "weights_sha256": "00", "weights_known_as": "drawn"}


def extractor(settings=SETTINGS, name="inception", main="2048"):
    """Features of ADM's names, smaller than its, of the mean colours of 4 x 4 patches."""
    rng = np.random.RandomState(0)
    projection = {size: rng.normal(0, 0.02, (48, size)).astype(np.float32) for size in (64, 21, 10)}

    def prepare(image):
        small = Image.fromarray(image).resize((4, 4), Image.Resampling.BOX)
        return np.asarray(small, np.float32).reshape(-1) / 255

    def apply(batch):
        found = {size: np.maximum(batch @ projection[size], 0) for size in projection}
        return {main: found[64], "spatial": found[21], "logits": 20 * found[10]}

    return Extractor(name, main, settings, prepare, apply)


def batch(n, seed):
    rng = np.random.RandomState(seed)
    colours = rng.randint(0, 256, (n, 1, 1, 3))
    return np.clip(colours + rng.normal(0, 40, (n, 8, 8, 3)), 0, 255).astype(np.uint8)


def features(images):
    made = extractor()
    return made.apply(np.stack([made.prepare(image) for image in images]))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adm")
    generated, shown, training = batch(40, 1), batch(30, 2), features(batch(60, 3))
    main, spatial = Statistics.of(training["2048"]), Statistics.of(training["spatial"])
    np.savez(folder / "samples.npz", generated, np.arange(40) % 4)
    np.savez_compressed(
        folder / "VIRTUAL.npz",
        arr_0=shown,
        mu=main.mean,
        sigma=main.covariance,
        mu_s=spatial.mean,
        sigma_s=spatial.covariance,
    )
    return folder


def test_references_with_statistics_and_images(files, tmp_path):
    """FID and sFID of the file's statistics; precision and recall of its images."""
    samples, references = str(files / "samples.npz"), str(files / "VIRTUAL.npz")
    found = evaluate(samples, references, tmp_path, extractor=extractor(), preset="adm")
    ours, shown = features(batch(40, 1)), features(batch(30, 2))
    training = features(batch(60, 3))
    for name, feature in (("fid", "2048"), ("sfid", "spatial")):
        expected = frechet(Statistics.of(ours[feature]), Statistics.of(training[feature]))
        assert found[name] == pytest.approx(expected, rel=1e-6)
    expected = adm.precision_recall(ours["2048"], shown["2048"])
    assert (found["precision"], found["recall"]) == expected
    score = adm.inception_score(ours["logits"])
    assert found["inception_score"] == pytest.approx(score.value, rel=1e-6)
    assert found["settings"]["preset"] == "adm" and found["n_generated"] == 40
    stated = found["features"]["references"]
    assert stated["statistics"] == f"mu and sigma of {references}"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_of_features_of_an_array(tmp_path, save):
    """At most 1.2 times the array; it is less, as rows are read one at a time."""
    array = np.random.RandomState(0).randint(0, 256, (1200, 64, 64, 3)).astype(np.uint8)
    save(tmp_path / "samples.npz", array)
    size = array.nbytes
    del array
    tracemalloc.start()
    found = extract(open_images(str(tmp_path / "samples.npz")), patches(), tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 1200 and peak < size / 2


def test_images_are_not_read_where_statistics_are_enough(files, tmp_path):
    stats = tmp_path / "stats.npz"
    with np.load(files / "VIRTUAL.npz") as arrays:
        np.savez(stats, **{name: arrays[name] for name in arrays.files if name != "arr_0"})
    found = evaluate(str(stats), str(files / "VIRTUAL.npz"), tmp_path / "a", extractor=extractor())
    assert abs(found["fid"]) < 1e-6 and abs(found["sfid"]) < 1e-6
    assert "precision" in found["not_computed"] and not (tmp_path / "a/references").exists()
    found = evaluate(str(stats), str(files / "VIRTUAL.npz"), tmp_path / "b")  # without weights
    assert abs(found["fid"]) < 1e-6


def test_other_features_than_adms_are_of_the_images(files, tmp_path):
    other = extractor({**SETTINGS, "resize": "clean"})
    samples, references = str(files / "samples.npz"), str(files / "VIRTUAL.npz")
    found = evaluate(samples, references, tmp_path, extractor=other)
    expected = frechet(*(Statistics.of(features(batch(*n))["2048"]) for n in ((40, 1), (30, 2))))
    assert found["fid"] == pytest.approx(expected, rel=1e-6) and found["n_references"] == 30
    assert any("mu and sigma" in warning for warning in found["warnings"])
    with pytest.raises(FeatureError, match="preset adm"):
        evaluate(samples, references, tmp_path, extractor=other, preset="adm")


def test_sample_batches_on_both_sides(files, tmp_path):
    np.savez(tmp_path / "real.npz", batch(30, 2))
    samples = str(files / "samples.npz")
    found = evaluate(samples, str(tmp_path / "real.npz"), tmp_path / "out", extractor=extractor())
    assert (found["n_generated"], found["n_references"]) == (40, 30)
    with pytest.raises(FeatureError, match="overlap"):
        evaluate(samples, samples, tmp_path / "same", extractor=extractor())
