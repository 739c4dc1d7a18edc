"""Contact sheets: one image with a grid of many documents, for samples, prompts and previews."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.representations.base import Representation

_BROKEN = (200, 60, 60)  # RGB, the tile of a document that cannot be decoded
_MIN_TILE = 48  # pixels; smaller images are enlarged by whole factors to be visible
_MAX_TILE = 128  # pixels
_MAX_FRAMES = 8  # shown of a clip


def sheet(images: Sequence[Image.Image | None], columns: int = 0) -> Image.Image:
    """Lays images out in a grid on white, one pixel apart.

    Args:
      images: at least one; None for a document that could not be decoded, shown as a red tile.
        Small images are enlarged by a whole factor, large ones reduced.
      columns: images in a row; 0 for a square grid.

    Returns:
      An image in mode RGB.

    Raises:
      ValueError: there is no image.
    """
    if not images:
        raise ValueError("there is no image to show")
    largest = max((max(image.size) for image in images if image), default=_MIN_TILE)
    tile = min(largest * max(1, math.ceil(_MIN_TILE / largest)), _MAX_TILE)
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    result = Image.new("RGB", (columns * (tile + 1) - 1, rows * (tile + 1) - 1), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        result.paste(_fitted(image, tile), (column * (tile + 1), row * (tile + 1)))
    return result


def sheet_of_documents(
    representation: Representation, documents: Sequence[np.ndarray], columns: int = 0
) -> Image.Image:
    """Decodes documents and lays them out; see `sheet_of`."""
    return sheet_of([pictures(representation, tokens) for tokens in documents], columns)


def sheet_of(shown: Sequence[list[Image.Image]], columns: int = 0) -> Image.Image:
    """Lays out decoded documents: images in a square grid, clips with one row of frames each.

    Args:
      shown: the images of each document, as `pictures` returns them; none for a document that could
        not be decoded, shown as a red tile.
      columns: images in a row; 0 for a square grid. Ignored for clips.

    Raises:
      ValueError: there is no document.
    """
    longest = max((len(own) for own in shown), default=0)
    if longest <= 1:
        return sheet([own[0] if own else None for own in shown], columns)
    frames = np.linspace(0, longest - 1, min(longest, _MAX_FRAMES)).round().astype(int)
    tiles = [own[frame] if frame < len(own) else None for own in shown for frame in frames]
    return sheet(tiles, len(frames))


def pictures(representation: Representation, tokens: np.ndarray) -> list[Image.Image]:
    """The image of a document, or the frames of a clip; [] if nothing can be decoded."""
    try:
        return _images(representation.decode(tokens))
    except ValueError:
        return []


def pictures_of_prefix(representation: Representation, tokens: np.ndarray) -> list[Image.Image]:
    """The same of a prompt, without what a decoder fills in after its end."""
    try:
        return _images(representation.decode_prefix(tokens))
    except ValueError:
        return []


def _images(media: Any) -> list[Image.Image]:
    return [media] if isinstance(media, Image.Image) else [Image.fromarray(f) for f in media]


def save(image: Image.Image, path: epath.PathLike) -> None:
    """Writes an image as a PNG file; `path` may be remote."""
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
