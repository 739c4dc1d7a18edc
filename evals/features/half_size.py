"""Small elements: images of half their size on black, judged where they are alone.

The paper's test of whether a model renders small things as well as large ones: it completes images
reduced to half their sides in the middle of a black canvas, and only that middle is compared.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.representations import contact_sheet
from data_pipelines.representations.base import Representation
from evals.features.features import Extractor
from evals.inputs.images import Images

Box = tuple[int, int, int, int]


def active_region(size: tuple[int, int]) -> Box:
    """Where the half-size image lies in one of (width, height): left, top, right, bottom."""
    width, height = size
    left, top = width // 4, height // 4
    return left, top, left + width // 2, top + height // 2


def half_size(image: Image.Image) -> Image.Image:
    """The image reduced to half its sides (antialiased bilinear), centred on black."""
    left, top, right, bottom = active_region(image.size)
    if right == left or bottom == top:
        raise ValueError(f"an image of {image.width} x {image.height} has no half")
    canvas = Image.new(image.mode, image.size)
    small = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    canvas.paste(small, (left, top))
    return canvas


def write(
    images: Images, representation: Representation, folder: epath.PathLike, num: int, seed: int
) -> list[tuple[str, str]]:
    """Writes images, as a representation sees them, at half their size, to PNG files.

    Args:
      images: real ones.
      representation: of images.
      folder: to write; one folder a class where there are classes.
      num: how many, at random; 0: all.
      seed: chooses them.

    Returns:
      (name, reason) of those that cannot be read.

    Raises:
      ValueError: `images` have been through a codec already.
    """
    if "decoded_from" in images.about or not hasattr(representation, "fit"):
        raise ValueError(
            f"half-size images are made of images; {images.name} has only documents: give --images"
        )
    lost = list(images.set_aside)
    order = np.random.default_rng(seed).permutation(len(images))
    for number in np.sort(order[: num or len(images)]).tolist():
        try:
            image = representation.fit(images.decode(number, images.read(number)))
        except (ValueError, OSError) as error:
            lost.append((images.key(number), str(error) or type(error).__name__))
            continue
        place = epath.Path(folder)
        if images.label_names:
            place /= f"class-{images.label(number):05d}"
        place.mkdir(parents=True, exist_ok=True)
        contact_sheet.save(half_size(image), place / f"{number:06d}.png")
    return lost


def on_active_region(extractor: Extractor) -> Extractor:
    """The same features of the active region alone."""

    def prepare(image: np.ndarray) -> np.ndarray:
        left, top, right, bottom = active_region((image.shape[1], image.shape[0]))
        return extractor.prepare(np.ascontiguousarray(image[top:bottom, left:right]))

    about = {**extractor.about, "region": "centre, half the sides"}
    return dataclasses.replace(extractor, about=about, prepare=prepare)
