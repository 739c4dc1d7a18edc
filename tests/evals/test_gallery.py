"""evals.gallery: samples in a seeded order, their nearest references, and a test for copies."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from evals import gallery
from evals.distances import neighbours
from evals.evaluation import evaluate
from tests.evals.plugin import patches
from tests.evals.test_evaluation import JPEG, write_generated, write_photos


@pytest.fixture
def evaluated(tmp_path):
    """An evaluation of generated files of which one is damaged and one shows nothing."""
    generated = write_generated(tmp_path / "generated", damaged=[3], nonsense=[5])
    references = write_photos(tmp_path / "references", range(100, 130))
    out = tmp_path / "out"
    evaluate(str(generated), str(references), out, extractor=patches(), representation=JPEG)
    return out


def test_every_sample_has_a_picture_and_its_validity(evaluated):
    found = gallery.read(evaluated)
    samples = found["samples"]
    assert found["n"] == len(samples) == 24
    assert {sample["key"] for sample in samples if not sample["valid"]} == {
        "000003.jpg",
        "000005.jpg",
    }
    assert [sample["key"] for sample in samples] != sorted(sample["key"] for sample in samples)
    for sample in samples:
        assert not sample["continuation"]
        side = 16 if sample["key"] == "000005.jpg" else 32  # grey where nothing decodes
        picture = Image.open(evaluated / gallery.FOLDER / sample["file"])
        assert picture.size == (side, side)


def test_neighbours_are_those_of_the_features(evaluated):
    found = gallery.read(evaluated)
    shown = [sample for sample in found["samples"] if "nearest" in sample]
    assert len(shown) == 12 and found["n_references"] == 30
    for sample in shown:
        distances = [each["distance"] for each in sample["nearest"]]
        assert len(distances) == 4 and distances == sorted(distances)
        assert sample["nearest_to_each_other"] > 0
        for each in sample["nearest"]:
            assert (evaluated / gallery.FOLDER / each["file"]).is_file()
    assert 0 <= found["authenticity"] <= 1


def test_copies_are_nearest_to_themselves_and_not_authentic(tmp_path):
    references = write_photos(tmp_path / "references", range(12))
    copies = tmp_path / "copies"
    shutil.copytree(references, copies)
    evaluate(str(copies), str(references), tmp_path / "out", extractor=patches())
    found = gallery.read(tmp_path / "out")
    assert found["authenticity"] == 0
    for sample in found["samples"]:
        assert sample["nearest"][0]["key"] == sample["key"]
        assert sample["nearest"][0]["distance"] == pytest.approx(0, abs=1e-4)
        assert "valid" not in sample


def test_pictures_of_references_of_an_earlier_evaluation_are_found_again(evaluated, tmp_path):
    generated = write_generated(tmp_path / "generated 2")
    shutil.copytree(tmp_path / "out", tmp_path / "earlier")
    options = {"extractor": patches(), "representation": JPEG}
    evaluate(str(generated), str(tmp_path / "earlier" / "references"), tmp_path / "b", **options)
    shown = gallery.read(tmp_path / "b")["samples"][0]["nearest"]
    assert all((tmp_path / "b" / gallery.FOLDER / each["file"]).is_file() for each in shown)
    # References that were moved have distances and no pictures.
    shutil.move(tmp_path / "references", tmp_path / "moved")
    evaluate(str(generated), str(tmp_path / "earlier" / "references"), tmp_path / "c", **options)
    shown = gallery.read(tmp_path / "c")["samples"][0]["nearest"]
    assert [each["file"] for each in shown] == [None] * 4 and shown[0]["distance"] > 0


def test_statistics_alone_leave_no_pictures(evaluated, tmp_path):
    statistics = {name: str(evaluated / name / "stats.npz") for name in ("generated", "references")}
    evaluate(statistics["generated"], statistics["references"], evaluated)
    assert gallery.read(evaluated) is None


def test_large_pictures_are_reduced(tmp_path):
    for side, seeds in (("generated", range(8)), ("references", range(8, 16))):
        write_photos(tmp_path / side, seeds, size=(400, 300))
    generated, references = str(tmp_path / "generated"), str(tmp_path / "references")
    evaluate(generated, references, tmp_path / "out", extractor=patches())
    folder = tmp_path / "out" / gallery.FOLDER
    names = [
        sample["file"] for sample in json.loads((folder / gallery.INDEX).read_text())["samples"]
    ]
    assert {Image.open(folder / name).size for name in names} == {(192, 144)}


def test_nearest_and_authenticity_follow_their_definitions():
    generator = np.random.default_rng(0)
    for d, ties in ((3, False), (40, False), (2, True)):
        x, y = generator.normal(size=(30, d)), generator.normal(size=(25, d))
        if ties:
            x, y = np.round(x), np.round(y)
        distances = np.linalg.norm(x[:, None] - y, axis=2)
        found = neighbours.nearest(x, y, 4)
        expected = np.sort(distances, 1)[:, :4]
        assert np.allclose(found.distances, expected)
        assert np.allclose(np.take_along_axis(distances, found.indices, 1), expected)
        among = np.linalg.norm(y[:, None] - y, axis=2) + np.where(np.eye(len(y)), np.inf, 0)
        if not ties:
            authentic = distances.min(1) > among.min(1)[distances.argmin(1)]
            assert neighbours.authenticity(x, y) == authentic.mean()
        some = np.array([3, 0, 24])
        assert neighbours.nearest_other(y, some) == pytest.approx(among[some].min(1), abs=1e-6)
    assert neighbours.authenticity(y, y) == 0


def test_nearest_of_many_references_are_found_in_parts():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(3, 2)), generator.normal(size=(40_000, 2)).astype(np.float32)
    distances = np.linalg.norm(x[:, None] - y, axis=2)
    found = neighbours.nearest(x, y, 5)
    assert np.array_equal(found.indices, np.argsort(distances, 1)[:, :5])
