"""Work is bounded by the bytes of a stream, not by the size that its header states."""

import time

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations


def own_size(**options):
    """A representation of images that have their own sizes, and a document of 64 x 48 pixels."""
    representation = representations.make("jpeg", size=None, strip="none", quality=50, **options)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    return representation, representation.encode(Image.fromarray(pixels))


def stating(tokens, width, height):
    """The same document with another size in its header."""
    data = bytes(tokens.astype(np.uint8))
    at = data.index(b"\xff\xc0") + 5
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return np.frombuffer(data[:at] + size + data[at + 4 :], np.uint8).astype(np.int32)


@pytest.mark.parametrize("options", [{}, {"restart_interval": 1}, {"mode": "L"}])
@pytest.mark.parametrize("side", [8000, 65500])
def test_a_header_that_states_more_than_its_bytes_hold_costs_nothing(options, side):
    representation, tokens = own_size(**options)
    wrong = stating(tokens, side, side)
    began = time.process_time()
    assert not representation.validate(wrong).valid
    for function in (representation.decode, representation.salvage, representation.decode_prefix):
        with pytest.raises(ValueError, match=f"{side} x {side} pixels, but only .* bytes"):
            function(wrong)
    with pytest.raises(ValueError):
        representation.prompt(wrong, 0.5)
    assert time.process_time() - began < 5


def test_the_beginning_of_an_image_is_still_shown_whole():
    representation, tokens = own_size()
    assert representation.salvage(tokens[: len(tokens) // 2]).image.size == (64, 48)
    flat = representation.encode(Image.new("RGB", (2000, 1500), (9, 99, 200)))
    assert representation.decode(flat).size == (2000, 1500)
    assert representation.salvage(representation.prompt(flat, 0.1)).image.size == (2000, 1500)
