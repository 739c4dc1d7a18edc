"""Geometric augmentation of images: a pure function of (options, key, copy number).

Preparation applies it to decoded images before a representation encodes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from typing import Literal

import numpy as np
from PIL import Image

_MODES = ("L", "RGB")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Small affine warps, each sampled uniformly from its range.

    Attributes:
      rotation: maximum angle in degrees, in either direction.
      shift: maximum shift as a fraction of width and height, in either direction.
      scale: 0.1 samples factors between 1/1.1 and 1.1, uniformly on a log scale.
      shear: maximum horizontal shear in either direction (0.1 tilts a line by 5.7 degrees).
      flip: mirror half of the copies left to right; for photographs, not for characters.
      border: pixels outside the image: "black", or a "mirror" of the image for photographs.
      oversample: the warp is rendered at this many times the target size; the encoder's
        antialiased resize scales it down. 4 keeps the error of 8x8 digits at 16x16 below one grey
        level of 255; 2 is enough for photographs larger than the target.
      seed: of the random numbers.
    """

    rotation: float = 10.0
    shift: float = 0.06
    scale: float = 0.1
    shear: float = 0.1
    flip: bool = False
    border: Literal["black", "mirror"] = "black"
    oversample: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"rotation": 180.0, "shift": 1.0, "scale": 1.0, "shear": 1.0}
        for name, maximum in limits.items():
            if not 0 <= getattr(self, name) <= maximum:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to {maximum:g}")
        if self.border not in ("black", "mirror"):
            raise ValueError(f"border is {self.border!r}, expected 'black' or 'mirror'")
        if not 1 <= self.oversample <= 16:
            raise ValueError(f"oversample is {self.oversample}, expected 1 to 16")

    def apply(
        self, image: Image.Image, key: str, copy: int, size: int | None = None
    ) -> Image.Image:
        """Returns one augmented copy of an image; copy 0 is the image itself.

        Args:
          image: normalised, in mode L or RGB.
          key: the document's key; seeds the warp together with `copy`.
          copy: 0, 1, 2, ...
          size: side of the square that the encoder will resize to, in pixels.

        Returns:
          An image of the same mode and proportions whose short side is `oversample * size`; of
          the image's own size if no `size` is given.

        Raises ValueError for another mode or a negative copy.
        """
        if copy == 0:
            return image
        if copy < 0:
            raise ValueError(f"copy is {copy}, expected 0 or more")
        if image.mode not in _MODES:
            raise ValueError(f"the image has mode {image.mode!r}, expected L or RGB: normalise it")
        canvas = image.size
        if size is not None:
            factor = self.oversample * size / min(image.size)
            canvas = round(image.width * factor), round(image.height * factor)
        magnified = canvas[0] > image.width
        if not magnified:
            image = image.resize(canvas, Image.Resampling.BILINEAR, reducing_gap=2.0)
        matrix = self.matrix(key, copy, canvas, image.size)
        if self.border == "mirror":
            image, matrix = _mirrored(image, matrix, canvas)
        return image.transform(
            canvas,
            Image.Transform.AFFINE,
            matrix,
            # Enlarged copies use the filter that enlarges originals, so both are equally sharp.
            Image.Resampling.BILINEAR if magnified else Image.Resampling.BICUBIC,
        )

    def matrix(
        self, key: str, copy: int, canvas: tuple[int, int], source: tuple[int, int]
    ) -> tuple[float, ...]:
        """The warp of a copy as Pillow's six affine coefficients.

        Args:
          key, copy: see `apply`; copy > 0.
          canvas, source: (width, height) of the result and of the image.

        Returns:
          (a, b, c, d, e, f): the pixel (x, y) of the result is read at (a x + b y + c,
          d x + e y + f) in the image.
        """
        turn, right, down, grow, slant, mirror = _uniform(self.seed, key, copy)
        angle = math.radians(self.rotation) * turn
        factor = (1 + self.scale) ** grow
        flip = -1.0 if self.flip and mirror < 0 else 1.0
        # The image is mirrored, sheared, rotated and scaled about its centre, then shifted. The
        # matrix maps canvas to source, so it is the inverse.
        cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
        slant *= self.shear
        a, b = flip * (cos + slant * sin), flip * (sin - slant * cos)
        d, e = -sin, cos
        centre_x = canvas[0] * (0.5 + self.shift * right)
        centre_y = canvas[1] * (0.5 + self.shift * down)
        x_scale, y_scale = source[0] / canvas[0], source[1] / canvas[1]
        coefficients = (
            a * x_scale,
            b * x_scale,
            source[0] / 2 - (a * centre_x + b * centre_y) * x_scale,
            d * y_scale,
            e * y_scale,
            source[1] / 2 - (d * centre_x + e * centre_y) * y_scale,
        )
        # Sines differ in their last bit between platforms; rounded coefficients do not.
        return tuple(round(value, 6) for value in coefficients)


def _uniform(seed: int, key: str, copy: int) -> list[float]:
    """Six numbers in [-1, 1) from a hash, equal on every platform."""
    name = f"{seed}/{copy}/{key}".encode()
    words = struct.unpack("<6Q", hashlib.blake2b(name, digest_size=48).digest())
    return [word / 2**63 - 1 for word in words]


def _mirrored(
    image: Image.Image, matrix: tuple[float, ...], canvas: tuple[int, int]
) -> tuple[Image.Image, tuple[float, ...]]:
    """Extends the image by reflection as far as the matrix reaches outside it."""
    a, b, c, d, e, f = matrix
    corners = [(x, y) for x in (0, canvas[0]) for y in (0, canvas[1])]
    across = [a * x + b * y + c for x, y in corners]
    along = [d * x + e * y + f for x, y in corners]
    overshoot = max(
        -min(across), max(across) - image.width, -min(along), max(along) - image.height, 0
    )
    margin = math.ceil(overshoot) + 2  # Bicubic resampling looks two pixels further.
    pixels = np.asarray(image)
    widths = [(margin, margin), (margin, margin)] + [(0, 0)] * (pixels.ndim - 2)
    padded = Image.fromarray(np.pad(pixels, widths, mode="symmetric"))
    return padded, (a, b, c + margin, d, e, f + margin)
