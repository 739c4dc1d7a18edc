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
_FRAMES = 8  # of a clip that are shown


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
    """Decodes documents and lays them out, see `sheet_of`."""
    return sheet_of([pictures(representation, tokens) for tokens in documents], columns)


def sheet_of(shown: Sequence[list[Image.Image]], columns: int = 0) -> Image.Image:
    """Lays out what `pictures` gave: images side by side; of clips some frames, a clip a row.

    What cannot be shown is red. Raises ValueError if there is nothing at all.
    """
    longest = max((len(own) for own in shown), default=0)
    if longest <= 1:
        return sheet([own[0] if own else None for own in shown], columns)
    places = np.linspace(0, longest - 1, min(longest, _FRAMES)).round().astype(int)
    tiles = [own[place] if place < len(own) else None for own in shown for place in places]
    return sheet(tiles, len(places))


def pictures(representation: Representation, tokens: np.ndarray) -> list[Image.Image]:
    """A document as images: itself, or all frames of a clip; none if it cannot be shown at all."""
    try:
        media = representation.decode(tokens)
    except ValueError:
        return []
    return [media] if isinstance(media, Image.Image) else [Image.fromarray(f) for f in media]


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
