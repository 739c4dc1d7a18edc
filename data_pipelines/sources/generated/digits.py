"""`digits`: scikit-learn's handwritten digits, a small real dataset that needs no download."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator

import numpy as np

from data_pipelines.media import Kind
from data_pipelines.sources.base import Item, Locator, Source, SourceError

_LEVELS = 16  # Grey values are 0 to 16: counts of ink pixels in 4x4 blocks of the scan.


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [1797, 8, 8] over 0..255, and labels, int64 [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / _LEVELS)).astype(np.uint8)
    return grey, data.target


class DigitsSource(Source):
    """1,797 grey images of 8x8 pixels in ten classes, white ink on black.

    The test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak,
    UCI Machine Learning Repository, 1998, as `sklearn.datasets.load_digits` ships it.
    """

    scheme = "digits"

    def __init__(self, argument: str = "", kind: Kind = "image") -> None:
        if argument:
            raise SourceError(f"the source 'digits' takes no argument, found {argument!r}")
        if kind != "image":
            raise SourceError(f"'digits' holds images, expected {kind}s: see 'moving_digits'")
        super().__init__()

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(str(digit) for digit in range(10))

    def _list(self) -> Iterator[Item]:
        for index, label in enumerate(digits()[1]):
            yield Item(f"digits/{index:04d}", index, int(label))

    def read(self, locator: Locator) -> bytes:
        """A PNG file, 8x8 in mode L."""
        from PIL import Image

        images, _ = digits()
        if not isinstance(locator, int) or not 0 <= locator < len(images):
            raise SourceError(f"digits has no image {locator!r}, expected 0 to {len(images) - 1}")
        file = io.BytesIO()
        Image.fromarray(images[locator]).save(file, format="PNG")
        return file.getvalue()
