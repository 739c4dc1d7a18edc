"""Sets of clips for `evals.video`: generated ones, and real ones before and after the codec."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.preparation.process import clip_key
from data_pipelines.representations.avc.representation import AvcRepresentation
from data_pipelines.sources import Source
from evals.inputs.codec import GeneratedError, Outcome
from jpeglm_jax.generation.manifest import MANIFEST


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip.

    Attributes:
      key: its name; of a real clip the name that manifests give as `source`.
      frames: uint8 [T, height, width, 3].
      record: the manifest line of a generated clip.
    """

    key: str
    frames: np.ndarray
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Clips(abc.ABC):
    """Clips in order.

    Attributes:
      name: path or spec of the clips.
      rejected: (key, reason) of unreadable videos, of the latest iteration.
    """

    def __init__(self, name: str):
        self.name = name
        self.rejected: list[tuple[str, str]] = []

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Clip]: ...


class RealClips(Clips):
    """Videos of a source, cut into clips and fitted as in training.

    Args:
      source: of the videos.
      representation: of the model.
      coded: encode and decode them, as a perfect model would reproduce them.
      max_clips: max number of clips; 0: all.
    """

    def __init__(
        self, source: Source, representation: AvcRepresentation, *, coded: bool, max_clips: int = 0
    ):
        super().__init__(source.spec)
        self._source, self._representation = source, representation
        self._coded, self._max_clips = coded, max_clips

    def __iter__(self) -> Iterator[Clip]:
        self.rejected = []
        count = 0
        for item in self._source.items():
            try:
                opened = self._representation.open(self._source.read(item.locator))
                for index, medium in enumerate(opened):
                    if self._max_clips and count == self._max_clips:
                        return
                    count += 1
                    yield Clip(clip_key(item.key, index), self._frames(medium))
            except (ValueError, OSError) as error:
                self.rejected.append((item.key, str(error)))
        self.rejected += [(reject.key, reject.reason) for reject in self._source.rejects]

    def _frames(self, medium: Any) -> np.ndarray:
        if self._coded:
            return self._representation.decode(self._representation.encode(medium))
        fitted = self._representation.fit(medium)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in fitted])


class GeneratedClips(Clips):
    """The documents in a folder's manifest.jsonl; grey if no frame decodes.

    Args:
      folder: written by `jpeglm_jax.generate`.
      representation: of the model.

    Raises:
      GeneratedError: there is no manifest.
    """

    def __init__(self, folder: epath.PathLike, representation: AvcRepresentation):
        super().__init__(str(folder))
        self._folder, self._representation = epath.Path(folder), representation
        path = self._folder / MANIFEST
        if not path.is_file():
            raise GeneratedError(
                f"{folder} has no {MANIFEST}; expected the output of a generate job"
            )
        self.lines = [json.loads(text) for text in path.read_text().splitlines()]
        self.outcome = Outcome(len(self.lines), 0, 0, 0)
        self.frames_missing = self.frames_damaged = 0

    def __iter__(self) -> Iterator[Clip]:
        valid = salvaged = 0
        self.frames_missing = self.frames_damaged = 0
        for line in self.lines:
            frames = self._decoded(line)
            valid += line["valid"]
            salvaged += not line["valid"] and frames is not None
            if frames is None:
                frames = self._grey()
            yield Clip(line["file"] or f"{line['number']:06d} (no file)", frames, line)
        failed = len(self.lines) - valid - salvaged
        self.outcome = Outcome(len(self.lines), valid, salvaged, failed)

    def _decoded(self, line: Mapping[str, Any]) -> np.ndarray | None:
        """The frames, missing ones concealed and counted; None if no frame decodes."""
        if not line["file"]:
            self.frames_missing += self._representation.frames
            return None
        try:
            tokens = self._representation.from_bytes((self._folder / line["file"]).read_bytes())
            decoded = self._representation.salvage(tokens)
        except ValueError:
            self.frames_missing += self._representation.frames
            return None
        self.frames_missing += len(decoded.missing)
        self.frames_damaged += len(decoded.corrupt)
        return decoded.frames

    def _grey(self) -> np.ndarray:
        width, height = self._representation.size
        return np.full((self._representation.frames, height, width, 3), 128, np.uint8)
