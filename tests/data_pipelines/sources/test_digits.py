"""The source `digits`."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources import SourceError, open_source


def test_digits_are_the_whole_set_with_labels():
    from sklearn.datasets import load_digits

    source = open_source("digits")
    items = list(source.items())
    assert source.label_names == tuple("0123456789")
    assert items[0].key == "digits/0000" and len(items) == len({i.key for i in items}) == 1797
    data = load_digits()
    assert [item.label for item in items] == data.target.tolist()
    image = np.asarray(Image.open(io.BytesIO(source.read(items[1234].locator))))
    assert image.shape == (8, 8) and image.dtype == np.uint8
    np.testing.assert_allclose(image, data.images[1234] * 255 / 16, atol=0.5)


@pytest.mark.parametrize("locator", [-1, 1797, "0", None])
def test_digits_refuse_a_wrong_locator(locator):
    with pytest.raises(SourceError, match="0 to 1796"):
        open_source("digits").read(locator)
