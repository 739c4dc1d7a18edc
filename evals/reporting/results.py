"""Result files: written by evaluation jobs, and read for the report with those of training runs.

A result is a JSON object in KIND.json with the members of `make_result`, see docs/results.md. Other
programs may read it: `schema.json` next to this module describes it, and `read_result` refuses
results of a newer schema.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from etils import epath

from data_pipelines.utils.compare import differences
from data_pipelines.utils.files import write_atomically

SCHEMA_VERSION = 1
# Members of every result -> their types. All others are the figures of its kind.
MEMBERS: Mapping[str, type] = {
    "schema_version": int,
    "kind": str,
    "command": str,
    "versions": dict,
    "settings": dict,
    "warnings": list,
    "not_computed": dict,
}
# Names of settings -> how they are printed. Settings with other names are printed as they are.
TITLES: Mapping[str, str] = {
    "workdir": "run",
    "step": "checkpoint step",
    "model_weights": "model weights (digest)",
    "representation": "representation",
    "seed": "seed",
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "guidance": "guidance",
    "constrained": "constrained",
    "label": "label",
    "labels": "labels",
    "prompted": "prompted",
    "prompt_share": "prompt, share given",
    "validity": "validity",
    "images": "images",
    "images_are": "images are",
    "generated": "generated images",
    "references": "references",
    "n_generated": "number generated",
    "n_references": "number of references",
    "n_images": "number of images",
    "subset_seed": "random subset, seed",
    "size_generated": "size, generated",
    "size_references": "size, references",
    "network": "network",
    "dimensions": "dimensions",
    "resize": "resize",
    "network_weights": "network weights",
    "network_weights_sha256": "network weights, SHA-256",
}

_METRICS = "metrics.jsonl"
_SETTINGS = "settings.json"


class ReportError(ValueError):
    """A folder without results, or with damaged ones."""


class SchemaError(ReportError):
    """A file that is no result, or a result of a newer schema."""


class SettingsError(ValueError):
    """A folder that holds the results of a job with other settings."""


def make_result(
    kind: str,
    command: str,
    settings: Mapping[str, Any],
    figures: Mapping[str, Any],
    *,
    versions: Mapping[str, str],
    warnings: Sequence[str] = (),
    not_computed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Makes a result.

    Args:
      kind: of the result; its file is KIND.json.
      command: the command line that gives it again, see `command_line`.
      settings: what the figures are of: names as in `TITLES` where they fit; text, numbers,
        booleans, None, or lists of these.
      figures: by name, NAME_standard_error next to NAME; any JSON values.
      versions: of the packages that decide the figures.
      warnings: sentences on how the figures may be used.
      not_computed: figure -> the reason why it is missing.

    Raises SchemaError for settings that are not flat, and figures with the name of a member.
    """
    if taken := MEMBERS.keys() & figures.keys():
        raise SchemaError(f"figures have names of members of every result: {sorted(taken)}")
    found = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "command": command,
        "versions": dict(versions),
        "settings": dict(settings),
        "warnings": list(warnings),
        "not_computed": dict(not_computed or {}),
        **figures,
    }
    _require_members(found, kind)
    return found


def read_result(path: epath.PathLike) -> dict[str, Any]:
    """Reads KIND.json. Raises SchemaError, and ReportError for a file that is not JSON."""
    path = epath.Path(path)
    found = _object(path.read_text(), str(path))
    version = found.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise SchemaError(
            f"{path} has no schema_version, so it is no result of an evaluation job of this "
            "program; evaluate again"
        )
    if version > SCHEMA_VERSION:
        raise SchemaError(
            f"{path} has schema_version {version}, this program reads up to {SCHEMA_VERSION}: use "
            "the program that wrote it, or a newer one"
        )
    _require_members(found, str(path))
    if found["kind"] != path.stem:
        raise SchemaError(f"{path} is a result of kind {found['kind']!r}, expected {path.stem!r}")
    return found


def _require_members(found: Mapping[str, Any], where: str) -> None:
    for name, kind in MEMBERS.items():
        if not isinstance(found.get(name), kind):
            raise SchemaError(
                f"{where}: {name} is {found.get(name)!r}, expected {_JSON_NAMES[kind]}"
            )
    for name, value in found["settings"].items():
        values = value if isinstance(value, list) else [value]
        if not all(each is None or isinstance(each, (str, int, float)) for each in values):
            raise SchemaError(f"{where}: the setting {name} is {value!r}, expected a flat value")


_JSON_NAMES = {int: "a number", str: "text", dict: "an object", list: "a list"}


def command_line(
    module: str, flags: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> str:
    """The command line of a job, quoted for a shell.

    Args:
      module: of the command, such as "evals.fid".
      flags: name -> value, in the order of the command line. A list is joined by commas.
      defaults: of the flags; a flag with its default, or None, is omitted.
    """
    defaults = defaults or {}
    words = ["python", "-m", module]
    for name, value in flags.items():
        if value is None or (name in defaults and value == defaults[name]):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no{name}")
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        words.append(f"--{name}=" + ",".join(map(_flag_text, values)))
    return shlex.join(words)


def _flag_text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def write_json(path: epath.PathLike, result: Any) -> None:
    """Writes a result atomically. Raises ValueError for NaN and infinity, which JSON lacks."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(epath.Path(path), text.encode() + b"\n")


def claim_folder(
    folder: epath.Path, settings: Mapping[str, Any], own: Collection[str] = ()
) -> None:
    """Writes a job's settings to settings.json of its folder, so that the job can be resumed.

    Args:
      folder: of the job; made if missing.
      settings: all that decides its results, as JSON values.
      own: names that the job itself writes to the folder before it claims it.

    Raises SettingsError if the folder holds the results of a job with other settings, or files of
    no job.
    """
    path = folder / _SETTINGS
    if not path.is_file():
        _require_empty(folder, own)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    if different := differences(settings, _object(path.read_text(), str(path))):
        raise SettingsError(
            f"{folder} holds results of other settings: {'; '.join(different)}; use the same "
            "settings or another folder"
        )


def _require_empty(folder: epath.Path, own: Collection[str]) -> None:
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir()]
    foreign = sorted(name for name in names if name not in own and not name.startswith("."))
    if foreign:
        raise SettingsError(
            f"{folder} holds files of no such job ({', '.join(foreign[:3])}), which could be "
            "overwritten; use another folder"
        )


def require_result(path: epath.Path) -> None:
    """Raises SettingsError if a file exists and is no result of an evaluation job."""
    if not path.exists():
        return
    try:
        found = _object(path.read_text(), str(path))
    except (ReportError, OSError, UnicodeDecodeError):
        found = {}
    if not MEMBERS.keys() <= found.keys():
        raise SettingsError(
            f"{path} is no result of an evaluation and would be overwritten; use another folder"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
      name: of its folder.
      folder: its workdir.
      lines: of metrics.jsonl, in order: `step` and metrics by name.
    """

    name: str
    folder: epath.Path
    lines: list[dict[str, Any]]

    @classmethod
    def read(cls, workdir: epath.PathLike) -> Run:
        """Reads a run. Raises ReportError for a folder that is not the workdir of a run."""
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
        """The last step with metrics; 0 if there is none yet."""
        return max((line["step"] for line in self.lines), default=0)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a metric; empty if there are none."""
        points = [(line["step"], line[name]) for line in self.lines if line.get(name) is not None]
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
        """Other files of the run, for links."""
        names = (_METRICS, "config.json", "representation.json")
        return [path for path in (self.folder / name for name in names) if path.is_file()]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The folder of one or several evaluation jobs.

    Attributes:
      name: of the folder.
      folder: its path.
      results: kind -> the contents of KIND.json.
    """

    name: str
    folder: epath.Path
    results: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: epath.PathLike, kinds: tuple[str, ...]) -> Evaluation:
        """Reads results. Raises ReportError for a folder without any, or with a damaged one."""
        folder = epath.Path(folder)
        paths = {kind: folder / f"{kind}.json" for kind in kinds}
        results = {kind: read_result(path) for kind, path in paths.items() if path.is_file()}
        if not results:
            raise ReportError(
                f"{folder} has no results of an evaluation job; expected one of "
                + ", ".join(path.name for path in paths.values())
            )
        return cls(folder.name, folder, results)

    def path(self, kind: str) -> epath.Path:
        """The file of a result."""
        return self.folder / f"{kind}.json"

    def file(self, name: str) -> epath.Path:
        """The path of a file named in a result, which must be inside the folder.

        Raises ReportError for a path outside the folder.
        """
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ReportError(
                f"a result in {self.folder} names {name!r}, which is outside the folder"
            )
        return self.folder / name


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ReportError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{where} holds a {type(value).__name__}, expected an object")
    return value
