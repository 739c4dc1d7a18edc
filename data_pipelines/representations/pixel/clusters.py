"""Clusters of colours: trained by k-means, stored as an .npy file, looked up for pixels.

ImageGPT (Chen et al. 2020, section 3.2) replaces a colour by the nearest of 512 centres, so that a
pixel is one token instead of three. Centres are rounded to 8 bits here: all distances are then
exact integers, and every machine finds the same nearest centre.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from typing import Self

import numpy as np
from threadpoolctl import threadpool_limits

CLUSTERS_FILE = "clusters.npy"  # the centres, in the folder of a representation

_MAX_PIXELS = 1 << 17  # that k-means sees: more improve it little, and it slows down
_MAX_ITERATIONS = 50
_AT_ONCE = 1 << 22  # distances computed together


@dataclasses.dataclass(frozen=True)
class Centres:
    """The centres of clusters; comparable and hashable.

    Attributes:
      file: the content of the .npy file: uint8 [clusters, channels], distinct.

    Raises:
      ValueError: another content.
    """

    file: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        expected = "expected an .npy file of distinct centres, uint8 [clusters, 1 or 3]"
        try:
            found = np.load(io.BytesIO(self.file), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"the colour clusters cannot be read: {error}; {expected}") from error
        if not isinstance(found, np.ndarray) or found.dtype != np.uint8:
            kind = getattr(found, "dtype", "several arrays")
            raise ValueError(f"the colour clusters are {kind}; {expected}")
        if found.ndim != 2 or found.shape[1] not in (1, 3) or len(found) < 2:
            raise ValueError(f"the colour clusters have the shape {found.shape}; {expected}")
        if len(np.unique(found, axis=0)) != len(found):
            raise ValueError(f"two of the {len(found)} colour clusters are equal; {expected}")

    @classmethod
    def of(cls, colours: np.ndarray) -> Self:
        """The centres with these colours, uint8 [clusters, channels]."""
        file = io.BytesIO()
        np.save(file, colours, allow_pickle=False)
        return cls(file.getvalue())

    @functools.cached_property
    def colours(self) -> np.ndarray:
        """uint8 [clusters, channels]."""
        return np.load(io.BytesIO(self.file), allow_pickle=False)

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.file).hexdigest()

    def nearest(self, pixels: np.ndarray) -> np.ndarray:
        """The cluster of each pixel: the centre with the least squared distance, or the first such.

        Args:
          pixels: uint8 [n, channels].

        Returns:
          int64 [n].
        """
        centres = self.colours.astype(np.float32).T
        # |c|^2 - 2 p.c orders centres as |p - c|^2. All terms are integers below 2^24, which
        # float32 holds exactly.
        offsets = np.square(centres).sum(0)
        result = np.empty(len(pixels), np.int64)
        step = max(1, _AT_ONCE // centres.shape[1])
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step].astype(np.float32)
            result[start : start + step] = (offsets - 2.0 * (part @ centres)).argmin(1)
        return result


def train(pixels: np.ndarray, clusters: int, seed: int = 0) -> Centres:
    """Trains centres by k-means on colours of pixels.

    Deterministic for one machine and version of scikit-learn, with any number of threads. Centres
    are sorted by brightness.

    Args:
      pixels: uint8 [n, channels].
      clusters: number of centres.
      seed: of the pixels that are used and of the first centres.

    Raises:
      ValueError: fewer distinct colours than clusters.
    """
    from sklearn.cluster import KMeans

    if len(pixels) > _MAX_PIXELS:
        rng = np.random.default_rng(seed)
        pixels = pixels[np.sort(rng.choice(len(pixels), _MAX_PIXELS, replace=False))]
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    if len(colours) < clusters:
        raise ValueError(
            f"the sampled images have only {len(colours)} distinct colours, expected at least as "
            f"many as clusters={clusters}; set clusters to fewer, or sample more images "
            "(--tokenizer_documents)"
        )
    model = KMeans(clusters, n_init=1, max_iter=_MAX_ITERATIONS, random_state=seed)
    with threadpool_limits(1):  # the order of sums would depend on the number of threads
        model.fit(colours.astype(np.float64), sample_weight=counts)
    rounded = np.rint(model.cluster_centers_).clip(0, 255).astype(np.uint8)
    distinct = _fill(np.unique(rounded, axis=0), colours, counts, clusters)
    order = np.lexsort((*distinct.T, distinct.sum(1, dtype=np.int64)))
    return Centres.of(distinct[order])


def _fill(
    centres: np.ndarray, colours: np.ndarray, counts: np.ndarray, clusters: int
) -> np.ndarray:
    """The centres, and where rounding made some equal, the colours with the largest total error."""
    missing = clusters - len(centres)
    if not missing:
        return centres
    nearest = centres[Centres.of(centres).nearest(colours)].astype(np.int64)
    error = np.square(colours.astype(np.int64) - nearest).sum(1) * counts
    return np.concatenate([centres, colours[np.argsort(-error, kind="stable")[:missing]]])
