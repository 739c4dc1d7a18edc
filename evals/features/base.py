"""What a feature extractor is, and the set of features it gives: the interfaces of evals.features.

The networks (`inception`, `dinov2`, `i3d`, `digit_features`) return an `Extractor` or a
`ClipExtractor`; `features.extract` writes a `FeatureSet`; distances and metrics read it. This
module imports none of them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.utils import npz

INDEX = "features.json"
ARRAY_PREFIX = "feature_"  # of the names of feature arrays in a part-*.npz

Features = Mapping[str, Any]  # name -> [B, d]
Apply = Callable[[np.ndarray], Features]


class FeatureError(ValueError):
    """Features or statistics from which no distance can be computed."""


class WeightsError(ValueError):
    """A weights file that is missing, damaged, of another network or not the stated file."""


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A function from images to features.

    Attributes:
      name: of the features in reports: "inception", "dinov2", ...
      main: the name of the feature that distances are computed from.
      settings: everything that determines the values, as JSON: hash of the weights, resize, ...
      prepare: one image, uint8 [height, width, 3] of any size, to the network's input, of one
        shape and dtype for all images. It runs in threads.
      apply: a batch of inputs [B, ...] to features by name, float [B, d] each. The last batch
        is padded, so that B is always the same.
      flags: of the command line that make this extractor again, see `extractors.define_flags`.
    """

    name: str
    main: str
    settings: Mapping[str, Any]
    prepare: Callable[[np.ndarray], np.ndarray]
    apply: Apply
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the name, the main feature and the settings."""
        text = json.dumps([self.name, self.main, dict(self.settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder_name(self) -> str:
        """The folder of this extractor's features, inside the folder of a set of images."""
        return f"features-{self.name}-{self.fingerprint[:8]}"


@dataclasses.dataclass(frozen=True)
class ClipExtractor:
    """A function from clips to features.

    Attributes:
      name: of the features; the Fréchet distance of "i3d" is called FVD.
      settings: everything that determines the values, as JSON: hash of the weights, resize, ...
      apply: uint8 [N, T, height, width, 3] -> float [N, d].
      flags: of the command line that make this extractor again.
    """

    name: str
    settings: Mapping[str, Any]
    apply: Callable[[np.ndarray], np.ndarray]
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """The features of a set of images.

    Attributes:
      features: by name, float32 [n, d] each, in the order of the images.
      keys: names of the images, n of them.
      digests: a 16-byte hash of each image's pixels, uint8 [n, 16]: equal for equal pixels.
      sizes: number of images of each size, "width x height".
      rejected: (name, reason) of files that are not readable images; they are not among the n.
      metadata: {"extractor", "settings", "main", "images", "inputs"}: which features of which
        images; "inputs" is a hash over the bytes of all images.
    """

    features: Mapping[str, np.ndarray]
    keys: Sequence[str]
    digests: np.ndarray
    sizes: Mapping[str, int]
    rejected: Sequence[tuple[str, str]]
    metadata: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def main(self) -> np.ndarray:
        """The feature that distances are computed from, float32 [n, d]."""
        return self.features[self.metadata["main"]]

    @classmethod
    def load(cls, folder: epath.PathLike) -> FeatureSet:
        """Reads what `features.extract` wrote. Raises FeatureError if it is not complete."""
        folder = epath.Path(folder)
        if not (folder / INDEX).is_file():
            raise FeatureError(f"{folder} holds no complete set of features; extract them (again)")
        index = json.loads((folder / INDEX).read_text())
        parts = [npz.load(folder / name) for name in index["parts"]]
        features = {
            name.removeprefix(ARRAY_PREFIX): np.concatenate(
                [part[name] for part in parts if name in part]
            )
            for name in set().union(*parts)  # a part without a readable image has none
            if name.startswith(ARRAY_PREFIX)
        }
        metadata = [json.loads(str(part["metadata"])) for part in parts]
        sizes = collections.Counter(size for part in metadata for size in part["sizes"])
        return cls(
            features,
            [key for part in metadata for key in part["keys"]],
            np.concatenate([part["digests"] for part in parts]),
            dict(sizes.most_common()),
            [tuple(pair) for pair in index["rejected"]]
            + [tuple(pair) for part in metadata for pair in part["rejected"]],
            index["metadata"],
        )
