"""Figures for each class: values, errors, classes with too few images; lists of labels."""

import json

import numpy as np
import pytest
from PIL import Image

from evals import fid, per_class
from evals.distances.frechet import frechet_of_features
from evals.distances.statistics import Statistics
from evals.evaluation import evaluate
from evals.features.base import FeatureError, FeatureSet
from jpeglm_jax.generation.manifest import read_manifest
from jpeglm_jax.generation.options import resolve_labels
from tests.evals.models import untrained
from tests.evals.plugin import patches
from tests.evals.schema import follows_schema
from tests.evals.test_evaluation import JPEG, write_photos

COUNTS = {"ant": 20, "bee": 12, "cat": 4}


def write_job(folder):
    """A job with the labels of `COUNTS`: every fifth document is damaged."""
    write_photos(folder / "pictures", range(sum(COUNTS.values())))
    labels = [label for label, count in enumerate(COUNTS.values()) for _ in range(count)]
    lines = []
    for number, label in enumerate(labels):
        with Image.open(folder / "pictures" / f"{number:03d}.png") as image:
            data = JPEG.to_bytes(JPEG.encode(image))
        if number % 5 == 0:
            data = data[:-30]
        (folder / f"{number:06d}.jpg").write_bytes(data)
        line = {"file": f"{number:06d}.jpg", "number": number, "label": label}
        lines.append(json.dumps(line | {"valid": number % 5 != 0}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))


def test_each_class_has_its_figures_with_errors(tmp_path):
    write_job(tmp_path / "job")
    for name in COUNTS:
        write_photos(tmp_path / "real" / name, range(100, 125))
    found = evaluate(
        str(tmp_path / "job"),
        f"folder:{tmp_path / 'real'}",
        tmp_path / "out",
        extractor=patches(),
        representation=JPEG,
        per_class=True,
    )
    result = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert follows_schema(result, tmp_path / "out" / "classes.json")
    assert "--per_class" in result["command"] and result["command"] == found["command"]
    assert [row["class"] for row in result["classes"]] == ["ant", "bee"]
    assert "4 generated images" in result["not_computed"]["cat"]
    assert any("48 dimensions" in text and "12" in text for text in result["warnings"])
    ant = result["classes"][0]
    assert (ant["label"], ant["n"], ant["n_references"]) == (0, 20, 25)
    assert ant["valid"] == 16 / 20 and 0.05 < ant["valid_standard_error"] < 0.15
    assert ant["precision_standard_error"] > 0
    (features,) = (tmp_path / "out" / "generated").glob("features-*")
    ours = FeatureSet.load(features).main[:20]
    (features,) = (tmp_path / "out" / "references").glob("features-*")
    theirs = FeatureSet.load(features).main[:25]
    expected = frechet_of_features(ours, Statistics.of(theirs))
    assert ant["frechet_distance"] == pytest.approx(expected.value)
    assert ant["frechet_distance_standard_error"] == pytest.approx(expected.standard_error)
    assert "ant" in per_class.table(result, lambda row, name: str(row[name]))


def test_classes_need_images_with_labels(tmp_path):
    photos = str(write_photos(tmp_path / "a", range(12)))
    other = str(write_photos(tmp_path / "b", range(12)))
    with pytest.raises(FeatureError, match="no classes"):
        evaluate(photos, other, tmp_path / "out", extractor=patches(), per_class=True)
    np.savez(tmp_path / "a.npz", mu=np.zeros(48), sigma=np.eye(48))
    with pytest.raises(FeatureError, match=r"a\.npz has only"):
        evaluate(photos, str(tmp_path / "a.npz"), tmp_path / "out", per_class=True)
    assert not (tmp_path / "out").exists()


def test_labels_of_a_file_and_balanced_labels(tmp_path):
    model = untrained()
    path = tmp_path / "labels.csv"
    path.write_text("3,2\n\n7\n0, 3\n")
    assert resolve_labels(model, 1, labels=str(path)) == [3, 3, 7, 0, 0, 0]
    balanced = resolve_labels(model, 30, labels="balanced")
    assert np.bincount(balanced).tolist() == [3] * 10
    with pytest.raises(ValueError, match="num is 25; expected a multiple of the model's 10"):
        resolve_labels(model, 25, labels="balanced")
    for text, message in [("10", "line 1: label is 10"), ("a,1", "line 1 is"), ("", "no label")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            resolve_labels(model, 1, labels=str(path))
    with pytest.raises(ValueError, match="expected balanced, or a file"):
        resolve_labels(model, 1, labels="nowhere")


def test_a_run_is_sampled_with_the_labels_of_a_file(digits_run, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("4,3\n1")
    folder, _ = fid.sample(str(digits_run), tmp_path / "out", 1000, 0, None, str(path))
    assert [line["label"] for line in read_manifest(folder)] == [4, 4, 4, 1]
