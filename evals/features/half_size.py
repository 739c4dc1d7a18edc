"""The paper's test of small elements: images at half size on black, compared in that region only.

It measures whether a model renders small objects as well as large ones. `evals.completion
--half_size` writes such images with `write`, completes them, and extracts features of the active
region with `on_active_region`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.representations import contact_sheet
from data_pipelines.representations.base import Representation
from evals.features.base import Extractor
from evals.inputs.images import Images

Box = tuple[int, int, int, int]


def active_region(size: tuple[int, int]) -> Box:
    """The box of the half-size image in one of (width, height): left, top, right, bottom."""
    width, height = size
    left, top = width // 4, height // 4
    return left, top, left + width // 2, top + height // 2


def half_size(image: Image.Image) -> Image.Image:
    """The image at half its width and height (antialiased bilinear), centred on black."""
    left, top, right, bottom = active_region(image.size)
    if right == left or bottom == top:
        raise ValueError(f"an image of {image.width} x {image.height} is too small to halve")
    canvas = Image.new(image.mode, image.size)
    small = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    canvas.paste(small, (left, top))
    return canvas


def write(
    images: Images, representation: Representation, folder: epath.PathLike, num: int, seed: int
) -> list[tuple[str, str]]:
    """Writes images, cropped and resized by a representation, at half size to PNG files.

    Args:
      images: real images.
      representation: of images.
      folder: to write; with a subfolder for each class if there are classes.
      num: number of images, sampled at random; 0: all.
      seed: of the random choice.

    Returns:
      (name, reason) of the rejected images.

    Raises:
      ValueError: `images` have been through a codec already.
    """
    if "decoded_from" in images.metadata or representation.frames > 1:
        raise ValueError(f"{images.name} holds documents, expected images to halve: give --images")
    rejected = list(images.rejected)
    order = np.random.default_rng(seed).permutation(len(images))
    for number in np.sort(order[: num or len(images)]).tolist():
        try:
            image = representation.fit(images.decode(number, images.read(number)))
        except (ValueError, OSError) as error:
            rejected.append((images.key(number), str(error) or type(error).__name__))
            continue
        target = epath.Path(folder)
        if images.label_names:
            target /= f"class-{images.label(number):05d}"
        target.mkdir(parents=True, exist_ok=True)
        contact_sheet.save(half_size(image), target / f"{number:06d}.png")
    return rejected


def on_active_region(extractor: Extractor) -> Extractor:
    """The same extractor, applied to the active region only."""

    def prepare(image: np.ndarray) -> np.ndarray:
        left, top, right, bottom = active_region((image.shape[1], image.shape[0]))
        return extractor.prepare(np.ascontiguousarray(image[top:bottom, left:right]))

    settings = {**extractor.settings, "region": "centre, half the sides"}
    return dataclasses.replace(extractor, settings=settings, prepare=prepare)
