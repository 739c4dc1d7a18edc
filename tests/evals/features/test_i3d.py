"""I3D equals the same network in PyTorch; other weights and short clips are rejected."""

import pathlib
import sys

import numpy as np
import pytest

from evals.features import i3d, video_features
from evals.features.base import WeightsError
from evals.features.weights import Weights

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "i3d"


@pytest.fixture(scope="module")
def random_weights():
    sys.path.insert(0, str(GOLDEN))
    sys.modules.pop("weights", None)
    try:
        import weights
    finally:
        sys.path.pop(0)
        sys.modules.pop("weights", None)
    return weights


def test_logits_equal_those_of_pytorch(random_weights):
    found = np.asarray(i3d.logits(i3d.load(random_weights.tensors()), random_weights.clip()))
    golden = np.load(GOLDEN / "golden.npz")["logits"]
    assert found.shape == (1, 400)
    np.testing.assert_allclose(found, golden, atol=1e-4 * np.abs(golden).max())


def test_other_weights_and_short_clips_are_rejected(random_weights):
    tensors = random_weights.tensors()
    del tensors["Mixed_4c.b1b.bn.running_var"]
    with pytest.raises(WeightsError, match=r"no Mixed_4c\.b1b\.bn\.running_var; expected"):
        i3d.load(tensors)
    extractor = i3d.extractor(Weights(random_weights.tensors(), "0" * 64, "random_weights"))
    with pytest.raises(WeightsError, match="at least 9 frames, found 8"):
        extractor.apply(np.zeros((1, 8, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("i3d", "needs --video_weights"),
        ("i4d", "expected i3d or MODULE:FUNCTION"),
        ("tests.evals.plugin:nothing", "ClipExtractor"),
    ],
)
def test_an_unknown_clip_extractor_is_rejected(name, message):
    with pytest.raises(ValueError, match=message):
        video_features.make(name)
