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
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.media.images import ImageError, normalise
from data_pipelines.representations.base import Representation, Validity
from evals.inputs.images import Decoded, Images, OpenAs, decoded_together, rgb
from jpeglm_jax.generation.manifest import MANIFEST
from jpeglm_jax.generation.tokens import TOKENS, Tokens

_GREY = Image.new("RGB", (16, 16), (128, 128, 128))
_BATCH = 128  # documents validated or decoded together


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
      other_than_manifest: documents whose validity is not what the manifest states.
    """

    requested: int
    strictly_valid: int
    salvaged: int
    failed: int
    units: int | None = None
    expected_units: int | None = None
    other_than_manifest: int = 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class GeneratedImages(Images):
    """The documents in a folder's manifest.jsonl, in its order; grey if nothing decodes.

    With a representation, the tokens that the job recorded are decoded and validated here; a folder
    without them is read from its files.

    Args:
      folder: written by `jpeglm_jax.generate`.
      representation: of the model; without it Pillow decodes the files, validity is that of the
        manifest, and units are not counted.
      open_as: how Pillow's images become pixels, see `images.OpenAs`.

    Raises:
      GeneratedError: no manifest, a line of it is damaged, it names files outside the folder, or
        files or tokens are missing.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        representation: Representation | None = None,
        open_as: OpenAs = "viewer",
    ):
        super().__init__(str(folder), {"open_as": open_as})
        if representation is not None:
            self.metadata["decoded_by"] = representation.fingerprint
            self.together = decoded_together(representation)
        self._open_as = open_as
        self._folder = epath.Path(folder)
        self._representation = representation
        self._lines = _read_manifest(self._folder)
        self._tokens: Tokens | None = None
        if representation is not None and (self._folder / TOKENS).is_file():
            try:
                self._tokens = Tokens(self._folder, self._lines)
            except ValueError as error:
                raise GeneratedError(str(error)) from error
        else:
            _require_files(self._folder, self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def key(self, number: int) -> str:
        return self._lines[number]["file"] or f"{number:06d} (no file)"

    def label(self, number: int) -> int:
        return int(self._lines[number].get("label", -1))

    def read(self, number: int) -> bytes:
        if self._tokens is not None:
            return self._tokens[number].astype("<u4").tobytes()
        name = self._lines[number]["file"]
        return (self._folder / name).read_bytes() if name else b""

    def decode(self, number: int, data: bytes) -> Image.Image:
        return self._decoded([data])[0] or _GREY

    def decode_batch(self, numbers: Sequence[int], data: Sequence[bytes]) -> list[Decoded]:
        return [image or _GREY for image in self._decoded(data)]

    @property
    def paths(self) -> tuple[str, ...]:
        return (os.path.realpath(self._folder),)

    def _documents(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Tokens of documents; none for a file that the representation cannot read."""
        assert self._representation is not None
        if self._tokens is not None:
            return [self._tokens[number] for number in numbers]
        documents = []
        for number in numbers:
            try:
                documents.append(self._representation.from_bytes(self.read(number)))
            except ValueError:  # another header
                documents.append(np.zeros(0, np.int32))
        return documents

    def _decoded(self, data: Sequence[bytes]) -> list[Image.Image | None]:
        """Documents that were read, as far as they decode; None where nothing does."""
        if self._tokens is None:
            return [self._decoded_file(each) for each in data]
        assert self._representation is not None
        images = self._representation.decode_batch([np.frombuffer(each, "<u4") for each in data])
        return [None if image is None else normalise(image, "RGB") for image in images]

    def _decoded_file(self, data: bytes) -> Image.Image | None:
        representation = self._representation
        if representation is not None:
            try:
                return normalise(representation.decode(representation.from_bytes(data)), "RGB")
            except ValueError:  # another header, or nothing to salvage
                pass
        try:
            return rgb(data, self._open_as) if data else None
        except ImageError:
            return None

    def is_continuation(self, number: int) -> bool:
        """Whether a document continues a prompt that was cut from a real image."""
        return bool(self._lines[number].get("prompt_tokens"))

    @functools.cached_property
    def valid(self) -> Sequence[bool]:
        """Whether each document is strictly valid: validated here, or else as the manifest states.

        Reads all documents.
        """
        if self._representation is None:
            return [bool(line["valid"]) for line in self._lines]
        return [validity.valid for validity in self._validities]

    @functools.cached_property
    def _validities(self) -> Sequence[Validity]:
        assert self._representation is not None
        return list(self._validate(self._representation))

    def shown(self, numbers: Sequence[int]) -> Iterator[Image.Image | None]:
        """Images as far as they decode, in mode RGB; None where nothing does."""
        for start in range(0, len(numbers), _BATCH):
            yield from self._decoded([self.read(n) for n in numbers[start : start + _BATCH]])

    @property
    def validity_of(self) -> str:
        """What strict validity is judged from, for a report."""
        if self._representation is None:
            return "the manifest"
        return "tokens, now" if self._tokens is not None else "files, now"

    @functools.cached_property
    def outcome(self) -> Outcome:
        """Counts of valid, salvaged and failed documents, see `valid`. Reads all of them."""
        valid = self.valid
        units = None
        if self._representation is not None:
            found = self._validities
            units = (sum(v.units for v in found), sum(v.expected for v in found))
        invalid = [number for number, is_valid in enumerate(valid) if not is_valid]
        salvaged = sum(image is not None for image in self.shown(invalid))
        failed = len(self) - sum(valid) - salvaged
        stated = [bool(line["valid"]) for line in self._lines]
        changed = sum(a != b for a, b in zip(valid, stated, strict=True))
        complete, expected = units or (None, None)
        return Outcome(len(self), sum(valid), salvaged, failed, complete, expected, changed)

    def damaged_files(self) -> list[str]:
        """Names of files that are missing, or are no longer what the recorded tokens stand for.

        Figures are of the tokens; the files may have changed since they were written.
        """
        if self._tokens is None or self._representation is None:
            return []
        damaged = []
        for line, tokens in zip(self._lines, self._tokens, strict=True):
            path = self._folder / line["file"]
            if line["file"]:
                same = path.is_file() and path.read_bytes() == self._representation.to_bytes(tokens)
                if not same:
                    damaged.append(line["file"])
        return damaged

    def _validate(self, representation: Representation) -> Iterator[Validity]:
        for start in range(0, len(self), _BATCH):
            numbers = range(start, min(start + _BATCH, len(self)))
            yield from representation.validate_batch(self._documents(numbers))


def _require_files(folder: epath.Path, lines: Sequence[dict[str, Any]]) -> None:
    for line in lines:
        if line["file"] and not (folder / line["file"]).is_file():
            raise GeneratedError(
                f"{folder} has no {line['file']}, which {MANIFEST} names; generate again"
            )


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
        lines.append(line)
    if not lines:
        raise GeneratedError(f"{path} is empty; expected a line for each document")
    return lines
