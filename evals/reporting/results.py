"""What training runs and evaluation jobs leave in their folders, read for a report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import PurePath
from typing import Any

from etils import epath

_METRICS = "metrics.jsonl"


class ReportError(ValueError):
    """A folder that holds nothing to report, or holds it damaged."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
      name: of its folder.
      folder: its workdir.
      lines: of metrics.jsonl, in order: `step` and named values.
    """

    name: str
    folder: epath.Path
    lines: list[dict[str, Any]]

    @classmethod
    def read(cls, workdir: epath.PathLike) -> Run:
        """Raises ReportError for a folder that is no run's."""
        folder = epath.Path(workdir)
        path = folder / _METRICS
        if not path.is_file():
            raise ReportError(f"{folder} has no {_METRICS}; expected the workdir of a training run")
        lines = []
        for number, text in enumerate(path.read_text().splitlines(), 1):
            line = _object(text, f"line {number} of {path}")
            if not isinstance(line.get("step"), int):
                raise ReportError(f"line {number} of {path} has no step")
            lines.append(line)
        return cls(folder.name, folder, lines)

    @property
    def steps(self) -> int:
        """The last step that has metrics; 0 if there is none yet."""
        return max((line["step"] for line in self.lines), default=0)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a metric; empty if it was never written."""
        points = [(line["step"], line[name]) for line in self.lines if name in line]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        values = self.curve(name)[1]
        return values[-1] if values else None

    @property
    def samples(self) -> list[tuple[int, epath.Path]]:
        """(step, picture) of every grid of samples, in the order of the steps."""
        found = (self.folder / "samples").glob("step_*.png")
        return sorted((int(path.stem.removeprefix("step_")), path) for path in found)

    @property
    def files(self) -> list[epath.Path]:
        """What can be looked at besides."""
        names = (_METRICS, "config.json", "representation.json")
        return [path for path in (self.folder / name for name in names) if path.is_file()]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The folder of one or several evaluation jobs.

    Attributes:
      name: of the folder.
      folder: where it lies.
      results: kind -> what the job wrote to KIND.json.
    """

    name: str
    folder: epath.Path
    results: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: epath.PathLike, kinds: tuple[str, ...]) -> Evaluation:
        """Raises ReportError for a folder without any result, or with a damaged one."""
        folder = epath.Path(folder)
        paths = {kind: folder / f"{kind}.json" for kind in kinds}
        results = {
            kind: _object(path.read_text(), str(path))
            for kind, path in paths.items()
            if path.is_file()
        }
        if not results:
            raise ReportError(
                f"{folder} has no result of an evaluation; expected one of "
                + ", ".join(path.name for path in paths.values())
            )
        return cls(folder.name, folder, results)

    def path(self, kind: str) -> epath.Path:
        """The file of a result."""
        return self.folder / f"{kind}.json"

    def beside(self, name: str) -> epath.Path:
        """A file that a result names; only one inside the folder.

        Raises ReportError for a name that leads out of it.
        """
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ReportError(f"a result in {self.folder} names {name!r}, which is not in there")
        return self.folder / name


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ReportError(f"{where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{where} holds a {type(value).__name__}, expected an object")
    return value
