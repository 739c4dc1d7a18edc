"""The pictures and ratios of the golden prompts, drawn by integers alone: the same anywhere."""

import numpy as np
from PIL import Image

# Width and height. 256 x 256 is not resized; of the others the middle is cut out, at odd places
# where the border cannot be split evenly.
SIZES = {"square": (256, 256), "wide": (403, 300), "tall": (281, 360), "small": (90, 97)}
MODES = {"small": "L"}
# Those of the paper, and 0.3, where no row ends.
RATIOS = (0.0, 0.25, 0.3, 0.375, 0.4375, 0.5, 0.75)


def draw(name: str) -> Image.Image:
    """A picture with slopes, edges and a textured part."""
    width, height = SIZES[name]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    slope = (x * 200 // width + y * 55 // height) % 256
    disc = (x - width // 3) ** 2 + (y - height // 2) ** 2 < (min(width, height) // 4) ** 2
    texture = (x * x // 7 + y * y // 11 + x * y // 5) % 97
    channels = [np.where(disc, 255 - slope // (i + 1), slope) for i in range(3)]
    channels = [np.where(x > width * 3 // 4, c // 2 + texture, c) for c in channels]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(MODES.get(name, "RGB"))
