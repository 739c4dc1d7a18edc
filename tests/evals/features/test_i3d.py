"""I3D against the same structure in PyTorch, and weights that are something else."""

import pathlib
import sys

import numpy as np
import pytest

from evals.features import i3d, video_features
from evals.features.weights import Weights, WeightsError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "i3d"


@pytest.fixture(scope="module")
def drawn():
    sys.path.insert(0, str(GOLDEN))
    sys.modules.pop("weights", None)
    try:
        import weights
    finally:
        sys.path.pop(0)
        sys.modules.pop("weights", None)
    return weights


def test_logits_are_those_of_the_network_in_pytorch(drawn):
    found = np.asarray(i3d.logits(i3d.load(drawn.tensors()), drawn.clip()))
    golden = np.load(GOLDEN / "golden.npz")["logits"]
    assert found.shape == (1, 400)
    np.testing.assert_allclose(found, golden, atol=1e-4 * np.abs(golden).max())


def test_other_weights_and_short_clips_are_refused(drawn):
    tensors = drawn.tensors()
    del tensors["Mixed_4c.b1b.bn.running_var"]
    with pytest.raises(WeightsError, match=r"no Mixed_4c\.b1b\.bn\.running_var; expected"):
        i3d.load(tensors)
    extractor = i3d.extractor(Weights(drawn.tensors(), "0" * 64, "drawn"))
    with pytest.raises(WeightsError, match="at least 9 frames, found 8"):
        extractor.apply(np.zeros((1, 8, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("i3d", "needs --video_weights"),
        ("i4d", "expected i3d or MODULE:FUNCTION"),
        ("tests.evals.plugin:nothing", "expected a ClipExtractor"),
    ],
)
def test_an_extractor_that_is_none_is_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        video_features.make(name)
