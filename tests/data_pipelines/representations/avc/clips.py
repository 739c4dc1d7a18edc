"""Synthetic clips for tests, made with integer arithmetic so that they are equal everywhere."""

import numpy as np


def moving(frames=15, width=256, height=144, *, cut=0):
    """Two discs over a slanted gradient, uint8 [frames, height, width, 3].

    From frame `cut` on the scene is another one; 0 for a clip without a change of scene.
    """
    y, x = np.mgrid[:height, :width]
    clip = []
    for t in range(frames):
        later = bool(cut) and t >= cut
        picture = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1)
        if later:  # smooth, so that x264 prefers an IDR picture
            picture = np.stack([255 - y * 255 // height] * 3, -1) // 4 * 4
        for number, colour in enumerate([(230, 40, 40), (250, 250, 90)]):
            centre_x = (width // 4 + (3 + number) * t * width // 64) % width
            centre_y = height // 3 * (1 + number)
            inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 < (height // 6) ** 2
            picture[inside] = colour
        clip.append(picture.astype(np.uint8))
    return np.stack(clip)
