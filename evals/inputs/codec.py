"""What a codec model wrote: how much of it is valid, and what can be shown of the rest.

Output that does not decode is never dropped, which would flatter the model that fails most on
what is hard: it stays in the count, and where nothing can be shown a grey image takes its place.
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

MANIFEST = "manifest.jsonl"
_GREY = Image.new("RGB", (16, 16), (128, 128, 128))
_BATCH = 64  # documents judged together


class GeneratedError(ValueError):
    """A folder of generated files that is not as `jpeglm_jax.generate` writes it."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Counts of the documents that were asked for.

    Attributes:
      requested: all of them; the sum of the next three.
      strictly_valid: an encoder could have written them.
      salvaged: not so, but there is something to show.
      failed: nothing can be shown.
      units: complete units (JPEG: MCUs) before the first damage, of all together; None if the
        representation is not known.
      expected_units: units that as many whole documents have.
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
    """The documents in a folder's manifest.jsonl, in its order; grey where nothing can be shown.

    Args:
      folder: what `jpeglm_jax.generate` wrote.
      representation: that of the model; without it damage is shown as Pillow shows it, and units
        are not counted.

    Raises:
      GeneratedError: no manifest, a line of it is damaged, or it names files outside the folder.
    """

    def __init__(self, folder: epath.PathLike, representation: Representation | None = None):
        super().__init__(str(folder))
        if representation is not None:
            self.about = {"shown_by": representation.fingerprint}
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
        return self._shown(data) or _GREY

    @property
    def paths(self) -> tuple[str, ...]:
        return (os.path.realpath(self._folder),)

    def _shown(self, data: bytes) -> Image.Image | None:
        """The image as far as it can be shown."""
        if not data:
            return None
        if self._representation is not None:
            try:
                tokens = self._representation.from_bytes(data)
                return normalise(self._representation.decode(tokens), "RGB")
            except ValueError:  # not its header, or nothing to salvage
                pass
        try:
            return normalise(open_image(data), "RGB")
        except ImageError:
            return None

    @functools.cached_property
    def outcome(self) -> Outcome:
        """Judges every document. Reads all files."""
        valid = salvaged = 0
        for number, line in enumerate(self._lines):
            if line["valid"]:
                valid += 1
            elif self._shown(self.read(number)) is not None:
                salvaged += 1
        failed = len(self) - valid - salvaged
        return Outcome(len(self), valid, salvaged, failed, *self._units())

    def _units(self) -> tuple[int | None, int | None]:
        if self._representation is None:
            return None, None
        units = expected = 0
        for start in range(0, len(self), _BATCH):
            numbers = range(start, min(start + _BATCH, len(self)))
            judged = judge([self.read(number) for number in numbers], self._representation)
            units += sum(validity.units for validity in judged)
            expected += sum(validity.expected for validity in judged)
        return units, expected


def judge(files: Sequence[bytes], representation: Representation) -> list[Validity]:
    """Strict judgement on whole files; one whose header is damaged has no unit."""
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
