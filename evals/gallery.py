"""Pictures of an evaluation for its page: samples in random order, and their nearest real images.

`evals.evaluation` writes them to OUT/gallery after the metrics, while it has the images of both
sides at hand; `evals.report` shows them. gallery.json names the files and the distances.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.representations.base import Representation
from data_pipelines.utils.files import write_atomically
from evals.distances import neighbours
from evals.distances.statistics import disjoint
from evals.features.base import FeatureSet
from evals.inputs.codec import GeneratedImages
from evals.inputs.images import FittedImages, Images, open_images
from jpeglm_jax.generation.manifest import MANIFEST

FOLDER = "gallery"
INDEX = "gallery.json"
_SAMPLES = 64  # shown in random order
_PROBES = 12  # of these, shown next to their nearest real images
_NEIGHBOURS = 4  # real images next to each
_LARGEST_SIDE = 192  # pixels; larger images are reduced
_LOSSLESS_SIDE = 64  # pixels; larger images are stored as JPEG, to keep the page small


class Pictured(NamedTuple):
    """A set of images with its features.

    Attributes:
      features: of the images, by key.
      images: the images themselves; None if they cannot be opened any more.
    """

    features: FeatureSet
    images: Images | None


def open_pictured(
    features: FeatureSet, images: Images | None, representation: Representation | None
) -> Pictured:
    """A set with its images, which are opened again if only the features are at hand.

    Args:
      features: of the set; their metadata name the images.
      images: the set itself, if it is open.
      representation: of the model, which fitted the references.
    """
    return Pictured(features, images or _reopened(features.metadata["images"], representation))


def _reopened(metadata: Any, representation: Representation | None) -> Images | None:
    where = str(metadata["from"])
    try:
        if ":" not in where and (epath.Path(where) / MANIFEST).is_file():
            return GeneratedImages(where, representation)
        images = open_images(where)
    except (ValueError, OSError):
        return None  # moved or removed since their features were computed
    if "fitted_to" not in metadata:
        return images
    if representation is None or representation.fingerprint != metadata["fitted_to"]:
        return None
    return FittedImages(images, representation, coded=bool(metadata.get("coded")))


def write(
    out: epath.PathLike,
    generated: Pictured | None,
    references: Pictured | None,
    *,
    max_neighbours: int,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Writes pictures of random samples and of their nearest references, and gallery.json.

    Args:
      out: folder of the evaluation; files are in OUT/gallery.
      generated: the generated set; None if only its statistics are known.
      references: the real set; None to show samples alone.
      max_neighbours: max images of each set for the authenticity.
      seed: of the random order.

    Returns:
      The contents of gallery.json; None, and no file, if the generated images cannot be opened.
    """
    folder = epath.Path(out) / FOLDER
    if generated is None or generated.images is None:
        (folder / INDEX).unlink(missing_ok=True)
        return None
    images = generated.images
    folder.mkdir(parents=True, exist_ok=True)
    n = len(generated.features)
    shown = np.random.default_rng(seed).permutation(n)[:_SAMPLES]
    files = _Files(folder)
    ours = _numbers(images)
    samples = []
    for index in shown:
        key = generated.features.keys[index]
        samples.append(
            {
                "key": key,
                **_facts(images, ours[key]),
                "file": files.write("sample", int(index), images, ours[key]),
            }
        )
    result: dict[str, Any] = {"seed": seed, "n": n, "samples": samples}
    if references is not None and len(references.features) > _NEIGHBOURS:
        result |= _nearest(generated, references, shown[:_PROBES], samples, files)
        x, y = (_subset(side.features.main, max_neighbours) for side in (generated, references))
        result["authenticity"] = neighbours.authenticity(x, y)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / INDEX, text.encode() + b"\n")
    return result


def read(out: epath.PathLike) -> dict[str, Any] | None:
    """The contents of gallery.json of an evaluation; None if it has no pictures."""
    path = epath.Path(out) / FOLDER / INDEX
    return json.loads(path.read_text()) if path.is_file() else None


def _nearest(
    generated: Pictured,
    references: Pictured,
    probes: np.ndarray,
    samples: Sequence[dict[str, Any]],
    files: _Files,
) -> dict[str, Any]:
    """Adds the nearest references to the first samples; returns facts about them."""
    theirs = references.features
    found = neighbours.nearest(generated.features.main[probes], theirs.main, _NEIGHBOURS)
    others = neighbours.nearest_other(theirs.main, found.indices[:, 0])
    numbers = _numbers(references.images) if references.images is not None else {}
    rows = zip(found.indices, found.distances, others, strict=True)
    for sample, (indices, distances, other) in zip(samples, rows, strict=False):
        sample["nearest"] = [
            {
                "key": theirs.keys[index],
                "distance": float(distance),
                "file": (
                    files.write("reference", int(index), references.images, number)
                    if references.images is not None
                    and (number := numbers.get(theirs.keys[index])) is not None
                    else None
                ),
            }
            for index, distance in zip(indices, distances, strict=True)
        ]
        sample["nearest_to_each_other"] = float(other)
    return {
        "references": str(theirs.metadata["images"]["from"]),
        "n_references": len(theirs),
        "features": str(theirs.metadata["extractor"]),
    }


def _facts(images: Images, number: int) -> dict[str, Any]:
    """Whether a generated image is valid and a continuation, where that is known; its label."""
    label = images.label(number)
    found: dict[str, Any] = {"label": label if label >= 0 else None}
    if isinstance(images, GeneratedImages):
        found["valid"] = bool(images.valid[number])
        found["continuation"] = images.is_continuation(number)
    return found


def _numbers(images: Images) -> dict[str, int]:
    return {images.key(number): number for number in range(len(images))}


def _subset(features: np.ndarray, max_count: int) -> np.ndarray:
    if len(features) <= max_count:
        return features
    return features[disjoint(len(features), -(-len(features) // max_count))[0]]


class _Files:
    """Writes pictures to a folder, each once."""

    def __init__(self, folder: epath.Path):
        self._folder, self._written = folder, dict[tuple[str, int], str]()

    def write(self, kind: str, index: int, images: Images, number: int) -> str:
        """Writes one image; returns the name of its file."""
        if (kind, index) not in self._written:
            image = images.decode(number, images.read(number)).convert("RGB")
            lossless = max(image.size) <= _LOSSLESS_SIDE
            image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            if lossless:
                image.save(buffer, "PNG", optimize=True)
            else:
                image.save(buffer, "JPEG", quality=92, subsampling=0)
            name = f"{kind}-{index:06d}{'.png' if lossless else '.jpg'}"
            write_atomically(self._folder / name, buffer.getvalue())
            self._written[kind, index] = name
        return self._written[kind, index]
