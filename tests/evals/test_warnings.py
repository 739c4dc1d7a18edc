"""What an evaluation says of figures that cannot be trusted, and of sets it does not know."""

import dataclasses

import numpy as np
import pytest

from evals import fid
from evals.evaluation import evaluate
from evals.features.base import FeatureError
from tests.evals.plugin import patches
from tests.evals.schema import follows_schema
from tests.evals.test_evaluation import JPEG, write_generated, write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    sets = {"a": range(30), "b": range(100, 140)}
    return {name: str(write_photos(folder / name, numbers)) for name, numbers in sets.items()}


def with_scores(wrong):
    """`patches` with class scores, NaN for the images of these numbers in each batch of 32."""
    plain = patches()

    def apply(batch):
        scores = np.random.default_rng(0).standard_normal((len(batch), 5)).astype(np.float32)
        scores[wrong] = np.nan
        return {**plain.apply(batch), "logits": scores}

    return dataclasses.replace(plain, apply=apply)


def test_class_scores_that_are_not_finite_cost_only_their_images(photos, tmp_path):
    found = evaluate(photos["a"], photos["b"], tmp_path, extractor=with_scores([3, 7]))
    assert follows_schema(found) and found["frechet_distance"] > 0
    assert np.isfinite(found["classifier_score"])
    (warning,) = [text for text in found["warnings"] if "classifier_score" in text]
    assert "28 images" in warning and "2 of 30" in warning and "003.png" in warning
    whole = evaluate(photos["a"], photos["b"], tmp_path / "2", extractor=with_scores(slice(None)))
    assert "classifier_score" in whole["not_computed"]
    assert whole["frechet_distance"] == found["frechet_distance"]


def test_few_images_and_other_resolutions_are_stated_once(photos, tmp_path):
    large = str(write_photos(tmp_path / "large", range(60), size=(80, 72)))
    found = evaluate(photos["a"], large, tmp_path / "out", extractor=patches())
    warnings = " ".join(found["warnings"])
    assert warnings.count("fewer than the 48 dimensions") == 1 and "30 images" in warnings
    assert warnings.count("40 x 36, references 80 x 72") == 1
    settings = found["settings"]
    assert (settings["size_generated"], settings["size_references"]) == ("40 x 36", "80 x 72")
    assert (settings["n_generated"], settings["n_references"]) == (30, 60)
    assert (settings["network"], settings["dimensions"]) == ("patches", 48)


def test_equal_sets_are_at_distance_zero_in_print(photos, tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.full(8, 0.3), sigma=np.diag(np.arange(1.0, 9)))
    found = evaluate(str(tmp_path / "a.npz"), str(tmp_path / "a.npz"), tmp_path / "out")
    assert found["frechet_distance"] == 0
    assert "-0" not in fid.table(found).replace("--", "")


@pytest.mark.parametrize(("stated", "name"), [(None, "frechet_distance"), ("inception", "fid")])
def test_the_distance_of_unknown_statistics_is_fid_only_where_the_user_states_it(
    tmp_path, stated, name
):
    for side, shift in (("a", 0.0), ("b", 0.5)):
        np.savez(tmp_path / f"{side}.npz", mu=np.full(8, shift), sigma=np.eye(8))
    sides = [str(tmp_path / f"{side}.npz") for side in "ab"]
    found = evaluate(*sides, tmp_path / "out", npz_features=stated)
    assert found[name] == pytest.approx(8 * 0.25)
    assert len({"fid", "frechet_distance"} & found.keys()) == 1
    assert ("--npz_features=inception" in found["command"]) == (stated is not None)
    assert found["settings"]["network"] == stated
    assert any("does not state its network" in text for text in found["warnings"])


def test_a_matrix_that_is_no_covariance_is_refused_by_the_name_of_its_file(tmp_path):
    np.savez(tmp_path / "good.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.diag([1.0, 1.0, -5.0]))
    with pytest.raises(FeatureError, match=r"bad\.npz: sigma has the eigenvalue -5"):
        evaluate(str(tmp_path / "good.npz"), str(tmp_path / "bad.npz"), tmp_path / "out")


def test_validity_is_judged_now_and_the_difference_to_the_manifest_is_counted(photos, tmp_path):
    folder = write_generated(tmp_path / "job", count=12)
    for number in (2, 5):  # two bytes of the scan, after the job had written its manifest
        path = folder / f"{number:06d}.jpg"
        data = bytearray(path.read_bytes())
        data[-40:-38] = b"\xff\xd9"
        path.write_bytes(data)
    found = evaluate(
        str(folder), photos["b"], tmp_path / "out", extractor=patches(), representation=JPEG
    )
    codec = found["codec"]
    assert (codec["requested"], codec["strictly_valid"]) == (12, 10)
    assert codec["other_than_manifest"] == 2 and codec["salvaged"] + codec["failed"] == 2
    assert found["settings"]["validity"] == "files, now"
    assert any("validity of 2 documents" in text for text in found["warnings"])


@pytest.mark.parametrize("name", ["batch_size", "max_neighbours"])
def test_numbers_are_checked_before_any_features(photos, tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        evaluate(photos["a"], photos["b"], tmp_path / "o", extractor=patches(), **{name: 0})
    assert not (tmp_path / "o").exists()
