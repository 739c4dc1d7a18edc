"""Generated images: the output of a generate job, with counts of valid and salvaged documents.

Output that does not decode is never dropped, which would favour models that fail on difficult
images: it is decoded as far as possible and counted, as a grey image if nothing can be decoded.
`evals.evaluation` and `evals.longtail` read generate jobs through this module.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.media.images import ImageError, normalise, open_image
from data_pipelines.representations.base import Representation, Validity
from evals.inputs.images import Images
from jpeglm_jax.generation.manifest import MANIFEST

_GREY = Image.new("RGB", (16, 16), (128, 128, 128))
_BATCH = 64  # documents validated together


class GeneratedError(ValueError):
    """A folder that does not hold the complete output of a generate job."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Counts of the requested documents.

    Attributes:
      requested: all documents; the sum of the next three.
      strictly_valid: documents that an encoder could have written.
      salvaged: invalid documents that decode in part.
      failed: documents of which nothing decodes.
      units: complete units (JPEG: MCUs) before the first damage, over all documents; None if the
        representation is unknown.
      expected_units: units of as many complete documents.
    """

    requested: int
    strictly_valid: int
    salvaged: int
    failed: int
    units: int | None = None
    expected_units: int | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class GeneratedImages(Images):
    """The documents in a folder's manifest.jsonl, in its order; grey if nothing decodes.

    Args:
      folder: written by `jpeglm_jax.generate`.
      representation: of the model; without it Pillow decodes damaged files, and units are not
        counted.

    Raises:
      GeneratedError: no manifest, a line of it is damaged, or it names files outside the folder.
    """

    def __init__(self, folder: epath.PathLike, representation: Representation | None = None):
        super().__init__(str(folder))
        if representation is not None:
            self.metadata = {"decoded_by": representation.fingerprint}
        self._folder = epath.Path(folder)
        self._representation = representation
        self._lines = _read_manifest(self._folder)

    def __len__(self) -> int:
        return len(self._lines)

    def key(self, number: int) -> str:
        return self._lines[number]["file"] or f"{number:06d} (no file)"

    def label(self, number: int) -> int:
        return int(self._lines[number].get("label", -1))

    def read(self, number: int) -> bytes:
        name = self._lines[number]["file"]
        return (self._folder / name).read_bytes() if name else b""

    def decode(self, number: int, data: bytes) -> Image.Image:
        return self._decoded(data) or _GREY

    @property
    def paths(self) -> tuple[str, ...]:
        return (os.path.realpath(self._folder),)

    def _decoded(self, data: bytes) -> Image.Image | None:
        """The image as far as it decodes; None if nothing does."""
        if not data:
            return None
        if self._representation is not None:
            try:
                tokens = self._representation.from_bytes(data)
                return normalise(self._representation.decode(tokens), "RGB")
            except ValueError:  # another header, or nothing to salvage
                pass
        try:
            return normalise(open_image(data), "RGB")
        except ImageError:
            return None

    @functools.cached_property
    def outcome(self) -> Outcome:
        """Counts of valid, salvaged and failed documents. Reads all files."""
        valid = salvaged = 0
        for number, line in enumerate(self._lines):
            if line["valid"]:
                valid += 1
            elif self._decoded(self.read(number)) is not None:
                salvaged += 1
        failed = len(self) - valid - salvaged
        return Outcome(len(self), valid, salvaged, failed, *self._units())

    def _units(self) -> tuple[int | None, int | None]:
        if self._representation is None:
            return None, None
        units = expected = 0
        for start in range(0, len(self), _BATCH):
            numbers = range(start, min(start + _BATCH, len(self)))
            files = [self.read(number) for number in numbers]
            validities = validate_files(files, self._representation)
            units += sum(validity.units for validity in validities)
            expected += sum(validity.expected for validity in validities)
        return units, expected


def validate_files(files: Sequence[bytes], representation: Representation) -> list[Validity]:
    """Strictly validates whole files; a file with a damaged header has no unit."""
    documents = []
    for data in files:
        try:
            documents.append(representation.from_bytes(data))  # type: ignore[attr-defined]
        except ValueError:
            documents.append(np.zeros(0, np.uint16))
    return representation.validate_batch(documents)  # type: ignore[attr-defined]


def _read_manifest(folder: epath.Path) -> list[dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise GeneratedError(f"{folder} has no {MANIFEST}; expected the output of a generate job")
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            name, _ = line["file"], line["valid"]
        except (ValueError, KeyError, TypeError) as error:
            raise GeneratedError(f"{path}, line {number} is damaged: {error!r}") from error
        if not isinstance(name, str) or set(name) & {"/", "\\", "\0"} or name in (".", ".."):
            raise GeneratedError(f"{path}, line {number} names {name!r}, no file of the folder")
        if name and not (folder / name).is_file():
            raise GeneratedError(
                f"{folder} has no {name}, which line {number} of {MANIFEST} names; generate again"
            )
        lines.append(line)
    if not lines:
        raise GeneratedError(f"{path} is empty; expected a line for each document")
    return lines
