"""A display matrix (rotation, mirroring) is applied to a video's frames exactly once."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from data_pipelines.media.videos import Fitter, read_clips
from data_pipelines.representations import make
from tests.data_pipelines.media.test_videos import video

_ONE = 1 << 16
# The upper left 2x2 of a display matrix, and what it does to an upright picture [h, w, 3].
MATRICES = {
    "0": ((1, 0, 0, 1), lambda picture: picture),
    "90": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "180": ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    "270": ((0, -1, 1, 0), lambda picture: np.rot90(picture)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "flipped": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda picture: picture.swapaxes(0, 1)),
    "anti-transposed": ((0, -1, -1, 0), lambda picture: np.rot90(picture, 2).swapaxes(0, 1)),
}


def corners(width=64, height=48, frames=12):
    """Four quarters of different grey, uint8 [T, height, width, 3]."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    greys = ((30, 90), (150, 220))
    for row, values in enumerate(greys):
        for column, grey in enumerate(values):
            down, right = row * height // 2, column * width // 2
            pixels[:, down : down + height // 2, right : right + width // 2] = grey
    return pixels


def with_matrix(mp4, upper_left):
    """An MP4 file whose track header (ISO/IEC 14496-12, 8.3.2) has this matrix."""
    at = mp4.index(b"tkhd") + 4
    at += 4 + (20 if mp4[at] == 0 else 32) + 16
    a, b, c, d = (value * _ONE for value in upper_left)
    return mp4[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[at + 36 :]


def psnr(ours, theirs):
    return 10 * np.log10(255**2 / np.mean((ours.astype(float) - theirs) ** 2))


@pytest.mark.parametrize("name", MATRICES)
def test_a_display_matrix_is_applied_once(name):
    upper_left, apply = MATRICES[name]
    pixels = corners()
    shown = apply(pixels[0])
    height, width = shown.shape[:2]
    data = with_matrix(video(pixels), upper_left)
    (clip, *_) = read_clips(data, size=(width, height), fps=(5, 1), frames=3, min_frames=3)
    read = [frame.to_ndarray(format="rgb24") for frame in clip]
    assert psnr(read[0], shown) > 30
    # Fitted frames are upright, so fitting them again, to any size, leaves them as they are.
    again = [Fitter((width, height)).fit(frame).to_ndarray(format="rgb24") for frame in clip]
    assert np.array_equal(again, read)
    larger = Fitter((2 * width, 2 * height)).fit(clip[0]).to_ndarray(format="rgb24")
    assert psnr(larger[::2, ::2], shown) > 25


@pytest.mark.parametrize("name", MATRICES)
def test_documents_and_prompts_hold_the_upright_picture(name):
    upper_left, apply = MATRICES[name]
    pixels = corners()
    shown = apply(pixels[0])
    height, width = shown.shape[:2]
    representation = make("avc", size=(width, height), fps=5, frames=3, slice_mbs=0, qp=20)
    (clip, *_) = representation.open(with_matrix(video(pixels), upper_left))
    tokens = representation.encode(clip)
    assert psnr(representation.decode(tokens)[0], shown) > 30
    first = representation.prompt(tokens, 1 / 3)
    assert psnr(representation.decode(first)[0], shown) > 30
