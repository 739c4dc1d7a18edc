"""Clips that are to be judged: a model's output, real videos before and after the codec."""

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
      key: its name; of a real one as `jpeglm_jax.prompts` spells it.
      frames: uint8 [T, height, width, 3].
      about: its line of the manifest, if a model wrote it.
    """

    key: str
    frames: np.ndarray
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Clips(abc.ABC):
    """Clips in order.

    Attributes:
      name: where they come from, as a user would say it.
      rejected: (key, reason) of those that could not be read so far.
    """

    def __init__(self, name: str):
        self.name = name
        self.rejected: list[tuple[str, str]] = []

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Clip]: ...


class RealClips(Clips):
    """Videos of a source, cut and fitted as in training.

    Args:
      source: where they are.
      representation: of the model.
      coded: after the codec, which is what a perfect model of it would write.
      most: clips to take; 0: all.
    """

    def __init__(
        self, source: Source, representation: AvcRepresentation, *, coded: bool, most: int = 0
    ):
        super().__init__(source.spec)
        self._source, self._representation = source, representation
        self._coded, self._most = coded, most

    def __iter__(self) -> Iterator[Clip]:
        self.rejected = []
        count = 0
        for item in self._source.items():
            try:
                opened = self._representation.open(self._source.read(item.locator))
                for place, medium in enumerate(opened):
                    if self._most and count == self._most:
                        return
                    count += 1
                    yield Clip(clip_key(item.key, place), self._frames(medium))
            except (ValueError, OSError) as error:
                self.rejected.append((item.key, str(error)))
        self.rejected += [(reject.key, reject.reason) for reject in self._source.rejects]

    def _frames(self, medium: Any) -> np.ndarray:
        if self._coded:
            return self._representation.decode(self._representation.encode(medium))
        fitted = self._representation.fit(medium)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in fitted])


class GeneratedClips(Clips):
    """The documents in a folder's manifest.jsonl; grey where not one frame can be shown.

    Args:
      folder: what `jpeglm_jax.generate` wrote.
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
            frames = self._shown(line)
            valid += line["valid"]
            salvaged += not line["valid"] and frames is not None
            if frames is None:
                frames = self._grey()
            yield Clip(line["file"] or f"{line['number']:06d} (no file)", frames, line)
        failed = len(self.lines) - valid - salvaged
        self.outcome = Outcome(len(self.lines), valid, salvaged, failed)

    def _shown(self, line: Mapping[str, Any]) -> np.ndarray | None:
        """The frames, missing ones made up for and counted; None if there is not one."""
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
