"""Figures by the definitions of ADM's evaluator equal those that it computes."""

import json

import numpy as np
import pytest

from evals.distances import adm, neighbours
from evals.distances.frechet import frechet
from evals.distances.statistics import Statistics
from evals.features.base import FeatureError
from tests.evals.reference import GOLDEN, golden_module

HERE = GOLDEN.parent / "adm"
vectors = golden_module("vectors", HERE)


@pytest.fixture(scope="module")
def golden():
    return json.loads((HERE / "golden.json").read_text())


@pytest.mark.parametrize("name", vectors.CASES)
def test_fid_precision_and_recall(golden, name):
    generated, references = vectors.features(name)
    found = adm.precision_recall(generated, references)
    # TensorFlow adds squares in half precision: close to the limit of a ball, images differ.
    tolerance = 0.03 if name == "far" else 0
    assert found.precision == pytest.approx(golden[name]["precision"], abs=tolerance)
    assert found.recall == pytest.approx(golden[name]["recall"], abs=tolerance)
    fid = frechet(Statistics.of(generated), Statistics.of(references))
    assert fid == pytest.approx(golden[name]["fid"], rel=1e-6)


def test_half_precision_is_part_of_the_definition(golden):
    exact = neighbours.precision_recall(*vectors.features("far"))
    assert golden["far"]["precision"] - exact.precision > 0.1
    assert golden["far"]["recall"] - exact.recall > 0.1


def test_sfid(golden):
    ours, theirs = map(Statistics.of, vectors.spatial())
    assert frechet(ours, theirs) == pytest.approx(golden["sfid"], rel=1e-6)


def test_inception_score_is_of_consecutive_parts(golden):
    found = adm.inception_score(vectors.logits(), vectors.SPLIT)
    assert found.value == pytest.approx(golden["inception_score"], rel=1e-6)
    shuffled = np.random.RandomState(0).permutation(vectors.logits())
    assert abs(adm.inception_score(shuffled, vectors.SPLIT).value - found.value) > 1e-3
    assert np.isnan(adm.inception_score(vectors.logits()).standard_error)  # one part of 5,000


def test_blocks_decide_the_precision_of_distances_only():
    generated, references = vectors.features("half")
    whole = adm.precision_recall(generated, references)
    assert adm.precision_recall(generated, references, block=37) == whole
    generated[0] = 300  # its squares overflow half precision: single precision in its blocks alone
    assert adm.precision_recall(generated, references).precision > 0


def test_too_few_images_and_other_dimensions_are_rejected():
    generated, references = vectors.features("half")
    with pytest.raises(FeatureError, match="found 3 images, expected more than 3"):
        adm.precision_recall(generated[:3], references)
    with pytest.raises(FeatureError, match="of 48 and of 47 dimensions"):
        adm.precision_recall(generated, references[:, 1:])
