"""Documents of images that are encoded where they are read."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.representations.vq.representation import VqRepresentation
from evals.inputs import documents
from evals.inputs.documents import Documents
from tests.data_pipelines.representations.vq import tokenizers


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    return str(tmp_path)


def test_what_a_device_encodes_is_encoded_together(folder, monkeypatch):
    calls = []
    encode_batch = VqRepresentation.encode_batch

    def counted(self, media):
        calls.append(len(media))
        return encode_batch(self, media)

    monkeypatch.setattr(VqRepresentation, "encode_batch", counted)
    found = Documents(folder, tokenizers.representation())
    together = list(found)
    assert calls == [4] and [name for name, _ in found.rejected] == ["3.png"]
    monkeypatch.setattr(documents, "decoded_together", lambda representation: 1)
    alone = list(found)
    assert calls == [4, 1, 1, 1, 0, 1] and len(found.rejected) == 1
    assert [one.key for one in together] == [one.key for one in alone]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.squared_error == pytest.approx(other.squared_error)
        assert one.squared_error > 0 and one.pixels == other.pixels > 0


def test_an_image_that_cannot_be_encoded_is_named(folder, monkeypatch):
    def refuses(self, media):
        raise ValueError("too bright")

    monkeypatch.setattr(VqRepresentation, "encode_batch", refuses)
    found = Documents(folder, tokenizers.representation())
    assert not list(found) and len(found.rejected) == 5
    assert ("0.png", "too bright") in found.rejected
