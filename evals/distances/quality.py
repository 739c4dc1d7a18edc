"""PSNR and SSIM of two images, for the continuations of `evals.video`."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

_SIGMA, _TRUNCATE = 1.5, 3.5  # a window of 11 x 11
_K1, _K2 = 0.01, 0.03
_LUMA = np.array([0.299, 0.587, 0.114])  # BT.601


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all samples, uint8 of one shape; inf if equal."""
    error = np.mean(np.square(a.astype(np.float64) - b.astype(np.float64)))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of the luma of two images (Wang et al. 2004).

    Gaussian windows of sigma 1.5, population statistics, without the border of incomplete
    windows.

    Args:
      a, b: uint8 [height, width, 3], at least 11 x 11 pixels.
    """
    x, y = a @ _LUMA, b @ _LUMA

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, _SIGMA, truncate=_TRUNCATE)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    similar = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    border = int(_TRUNCATE * _SIGMA + 0.5)
    return float(similar[border:-border, border:-border].mean())
