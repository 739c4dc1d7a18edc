"""Light geometric augmentation: a pure function of (options, key, copy), whoever calls it."""

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
    """Small affine warps, each drawn uniformly from its range.

    Attributes:
      rotation: degrees, at most this far either way.
      shift: part of the image's width and height, at most this far either way.
      scale: 0.1 draws factors between 1/1.1 and 1.1, evenly on a log scale.
      shear: horizontal shear, at most this far either way (0.1 leans a line by 5.7 degrees).
      flip: mirror half of the copies left to right: for photographs, never for characters.
      border: what comes in from outside: "black", or a "mirror" of the image for photographs.
      oversample: the warp is drawn on a grid this many times finer than the target size, which
        the encoder's antialiased resize then brings down. 4 keeps the error of 8x8 digits at 16x16
        below one grey level of 255; for photographs larger than the target 2 will do.
      seed: another seed gives other copies.
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
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to {most:g}")
        if self.border not in ("black", "mirror"):
            raise ValueError(f"border is {self.border!r}, expected 'black' or 'mirror'")
        if not 1 <= self.oversample <= 16:
            raise ValueError(f"oversample is {self.oversample}, expected 1 to 16")

    def apply(
        self, image: Image.Image, key: str, copy: int, size: int | None = None
    ) -> Image.Image:
        """One augmented copy of an image; copy 0 is the image itself.

        Args:
          image: normalised, in mode L or RGB.
          key: the document's key; with `copy` it decides the warp.
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
            raise ValueError(f"an image of mode {image.mode!r} to augment, expected L or RGB")
        canvas = image.size
        if size is not None:
            factor = self.oversample * size / min(image.size)
            canvas = round(image.width * factor), round(image.height * factor)
        magnified = canvas[0] > image.width
        if not magnified:
            image = image.resize(canvas, Image.Resampling.BILINEAR, reducing_gap=2.0)
        matrix = self._matrix(key, copy, canvas, image.size)
        if self.border == "mirror":
            image, matrix = _mirrored(image, matrix, canvas)
        return image.transform(
            canvas,
            Image.Transform.AFFINE,
            matrix,
            # An enlarged copy gets the filter that enlarges its original, so that copies and
            # originals are equally sharp.
            Image.Resampling.BILINEAR if magnified else Image.Resampling.BICUBIC,
        )

    def _matrix(
        self, key: str, copy: int, canvas: tuple[int, int], source: tuple[int, int]
    ) -> tuple[float, ...]:
        """Pillow's six coefficients: from places on the canvas to places in the source, pixels."""
        turn, right, down, grow, lean, mirror = _uniform(self.seed, key, copy)
        angle = math.radians(self.rotation) * turn
        factor = (1 + self.scale) ** grow
        flip = -1.0 if self.flip and mirror < 0 else 1.0
        # The image is mirrored, leant, turned and scaled about its centre, then shifted; reading
        # it from the canvas undoes this, last step first.
        cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
        lean *= self.shear
        a, b = flip * (cos + lean * sin), flip * (sin - lean * cos)
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
    """Six numbers in [-1, 1), by hash: no generator's state, and equal on every platform."""
    name = f"{seed}/{copy}/{key}".encode()
    words = struct.unpack("<6Q", hashlib.blake2b(name, digest_size=48).digest())
    return [word / 2**63 - 1 for word in words]


def _mirrored(
    image: Image.Image, matrix: tuple[float, ...], canvas: tuple[int, int]
) -> tuple[Image.Image, tuple[float, ...]]:
    """The image, continued on all sides as far as the matrix reaches outside it, by reflection."""
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
    wider = Image.fromarray(np.pad(pixels, widths, mode="symmetric"))
    return wider, (a, b, c + margin, d, e, f + margin)
