"""Pictures of many documents at once: a grid that one can look at."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.representations.base import Representation

_BROKEN = (200, 60, 60)  # the tile of a document that cannot be shown
_SMALLEST_TILE = 48  # smaller images are enlarged by whole factors, so that they can be seen
_LARGEST_TILE = 128


def sheet(images: Sequence[Image.Image | None], columns: int = 0) -> Image.Image:
    """Lays images out in rows, on white, one pixel apart.

    Args:
      images: at least one; None for one that could not be made. Small ones are enlarged by a whole
        factor, large ones reduced.
      columns: images in a row; 0: as many as there are rows.

    Returns:
      An image in mode RGB.

    Raises:
      ValueError: there is no image.
    """
    if not images:
        raise ValueError("there is no image to show")
    largest = max((max(image.size) for image in images if image), default=_SMALLEST_TILE)
    tile = min(largest * max(1, math.ceil(_SMALLEST_TILE / largest)), _LARGEST_TILE)
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    result = Image.new("RGB", (columns * (tile + 1) - 1, rows * (tile + 1) - 1), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        result.paste(_fitted(image, tile), (column * (tile + 1), row * (tile + 1)))
    return result


def sheet_of_documents(
    representation: Representation, documents: Sequence[np.ndarray], columns: int = 0
) -> Image.Image:
    """Decodes documents of images and lays them out; those that cannot be shown are red.

    Raises ValueError if the representation's media are not images.
    """
    return sheet([shown(representation, tokens) for tokens in documents], columns)


def shown(representation: Representation, tokens: np.ndarray) -> Image.Image | None:
    """A document as an image, or None if it cannot be shown at all."""
    try:
        image = representation.decode(tokens)
    except ValueError:
        return None
    if not isinstance(image, Image.Image):
        raise ValueError(f"documents of {representation.name!r} are not images")
    return image


def save(image: Image.Image, path: epath.PathLike) -> None:
    """Writes a PNG file; `path` may be remote."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    epath.Path(path).write_bytes(buffer.getvalue())


def _fitted(image: Image.Image | None, tile: int) -> Image.Image:
    if image is None:
        return Image.new("RGB", (tile, tile), _BROKEN)
    factor = tile / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    resample = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, resample)
