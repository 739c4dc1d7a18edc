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
from data_pipelines.representations.base import Representation
from data_pipelines.sources import Source
from evals.inputs.codec import GeneratedError, Outcome
from jpeglm_jax.generation.manifest import MANIFEST
from jpeglm_jax.generation.tokens import Tokens


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
        self, source: Source, representation: Representation, *, coded: bool, max_clips: int = 0
    ):
        super().__init__(source.spec)
        self._source, self._representation = source, representation
        self._coded, self.max_clips = coded, max_clips

    def __iter__(self) -> Iterator[Clip]:
        self.rejected = []
        count = 0
        for item in self._source.items():
            try:
                opened = self._representation.open(self._source.read(item.locator))
                for index, medium in enumerate(opened):
                    if self.max_clips and count == self.max_clips:
                        return
                    count += 1
                    yield Clip(clip_key(item.key, index), self._frames(medium))
            except (ValueError, OSError) as error:
                self.rejected.append((item.key, str(error)))
        self.rejected += [(reject.key, reject.reason) for reject in self._source.rejects]

    def _frames(self, medium: Any) -> np.ndarray:
        if self._coded:
            return self._representation.decode(self._representation.encode(medium))
        return self._representation.fit(medium)


class GeneratedClips(Clips):
    """The documents in a folder's manifest.jsonl; grey if no frame decodes.

    Args:
      folder: written by `jpeglm_jax.generate`.
      representation: of the model.

    Raises:
      GeneratedError: there is no manifest, or no tokens that match it.
    """

    def __init__(self, folder: epath.PathLike, representation: Representation):
        super().__init__(str(folder))
        self._folder, self._representation = epath.Path(folder), representation
        path = self._folder / MANIFEST
        if not path.is_file():
            raise GeneratedError(
                f"{folder} has no {MANIFEST}; expected the output of a generate job"
            )
        self.lines = [json.loads(text) for text in path.read_text().splitlines()]
        try:
            self._tokens = Tokens(self._folder, self.lines)
        except ValueError as error:
            raise GeneratedError(str(error)) from error
        self.outcome = Outcome(len(self.lines), 0, 0, 0)
        self.frames_missing = self.frames_damaged = 0

    def __iter__(self) -> Iterator[Clip]:
        valid = salvaged = changed = 0
        self.frames_missing = self.frames_damaged = 0
        for line, tokens in zip(self.lines, self._tokens, strict=True):
            frames = self._decoded(tokens)
            is_valid = self._representation.validate(tokens).valid
            valid += is_valid
            salvaged += not is_valid and frames is not None
            changed += is_valid != line["valid"]
            if frames is None:
                frames = self._grey()
            yield Clip(line["file"] or f"{line['number']:06d} (no file)", frames, line)
        failed = len(self.lines) - valid - salvaged
        self.outcome = Outcome(
            len(self.lines), valid, salvaged, failed, other_than_manifest=changed
        )

    def _decoded(self, tokens: np.ndarray) -> np.ndarray | None:
        """The frames, missing ones concealed and counted; None if no frame decodes."""
        try:
            decoded = self._representation.decode_with_damage(tokens)
        except ValueError:
            self.frames_missing += self._representation.frames
            return None
        self.frames_missing += decoded.missing_frames
        self.frames_damaged += decoded.damaged_frames
        return decoded.media

    def _grey(self) -> np.ndarray:
        width, height = self._representation.fixed_size or (16, 16)
        return np.full((self._representation.frames, height, width, 3), 128, np.uint8)
