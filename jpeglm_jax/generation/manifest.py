"""The folder of a generation job: job.json, its settings, and manifest.jsonl, its documents.

A folder belongs to one job: another job is refused there. manifest.jsonl has a line about every
document. Each task writes the lines of finished documents to a file of its own; a job that resumes
reads that file and samples the missing documents. When no document is missing, the files of all
tasks become manifest.jsonl, ordered by number: it exists only if the job is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.utils.compare import differences
from data_pipelines.utils.files import is_remote, write_atomically
from jpeglm_jax.generation.tokens import TokenRecord

MANIFEST = "manifest.jsonl"
_JOB = "job.json"


class JobError(ValueError):
    """A folder that holds the output of another generation job, or files of no job."""


def claim_folder(
    folder: epath.PathLike, settings: Mapping[str, Any], workdir: str | None = None
) -> None:
    """Writes the settings of a job to job.json of its folder, or compares them with those there.

    Args:
      folder: of the job; made if missing.
      settings: all that decides its output, as JSON values.
      workdir: of the run, for reports; a run that was moved is the same.

    Raises:
      JobError: the folder holds the output of another job, and the error names the settings that
        differ; or it holds files and no job.
      WriteError: the disk is full.
    """
    folder = epath.Path(folder)
    path = folder / _JOB
    ours = {"job": "generate", **settings}
    if path.exists():
        theirs = {name: value for name, value in _read_job(path).items() if name != "workdir"}
        if theirs.get("job") != ours["job"]:
            raise JobError(f"{path} is not of a generation job; give another --out")
        if found := differences(ours, theirs):
            raise JobError(
                f"{folder} holds the output of another job: {'; '.join(found)}; give another "
                "--out, or remove the folder"
            )
        return
    if folder.exists():
        if not folder.is_dir():
            raise JobError(f"{folder} is a file; expected a folder, or a path that does not exist")
        foreign = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name))
        if foreign:
            raise JobError(
                f"{folder} holds files of no generation job ({', '.join(foreign[:3])}), which "
                "could be overwritten; give another --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**ours, "workdir": workdir}, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(path, text.encode() + b"\n")


def _read_job(path: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, FileNotFoundError):
        found = None
    return found if isinstance(found, dict) else {}


def _is_ours(name: str) -> bool:
    """Whether a name in a folder without job.json is a lease or hidden, and not overwritten."""
    return name.startswith((".", "lease"))


def read_settings(folder: epath.PathLike) -> dict[str, Any] | None:
    """The settings of the job in a folder, see `job.job_settings`; None if there is none."""
    found = _read_job(epath.Path(folder) / _JOB)
    return found if found.get("job") == "generate" else None


def is_unfinished(folder: epath.PathLike) -> bool:
    """Whether a folder is that of a generation job whose manifest is missing."""
    folder = epath.Path(folder)
    return not (folder / MANIFEST).exists() and read_settings(folder) is not None


class Manifest:
    """The lines of one task of a job, in a folder that `claim_folder` has checked.

    Args:
      folder: of the job.
      num: documents of the whole job.
      task, num_tasks: task i of n samples the documents whose number leaves i when divided by n.

    Raises WriteError (disk full).
    """

    def __init__(self, folder: epath.PathLike, num: int, task: int = 0, num_tasks: int = 1):
        self._folder = epath.Path(folder)
        self._num, self._task, self._num_tasks = num, task, num_tasks
        self._path = self._part(task)
        self._lines = self._whole_lines()

    def _part(self, task: int) -> epath.Path:
        return self._folder / f"manifest-{task:05d}-of-{self._num_tasks:05d}.jsonl"

    def _whole_lines(self) -> list[dict[str, Any]]:
        """Lines of this task; a line that a kill cut short is dropped."""
        whole = self._folder / MANIFEST
        if whole.exists():
            lines = read_manifest(self._folder)
            return [line for line in lines if line["number"] % self._num_tasks == self._task]
        if not self._path.exists():
            return []
        lines = []
        for text in self._path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        self._rewrite(lines)
        return lines

    @property
    def missing(self) -> list[int]:
        """Numbers of the documents that this task has not sampled yet."""
        done = {line["number"] for line in self._lines}
        return [n for n in range(self._task, self._num, self._num_tasks) if n not in done]

    @property
    def lines(self) -> Sequence[dict[str, Any]]:
        """Lines of this task, in the order in which the documents finished."""
        return self._lines

    def add(self, line: dict[str, Any]) -> None:
        """Writes the line of a document whose file is complete. Raises WriteError (disk full)."""
        self._lines.append(line)
        if is_remote(self._path):  # object stores cannot append
            self._rewrite(self._lines)
            return
        try:
            with open(self._path, "a") as file:
                file.write(_text([line]))
        except OSError:
            self._lines.pop()
            self._rewrite(self._lines)  # raises the WriteError, and leaves no half line
            raise

    def _rewrite(self, lines: Sequence[dict[str, Any]]) -> None:
        write_atomically(self._path, _text(lines).encode())

    def finish(self, record: TokenRecord) -> list[dict[str, Any]] | None:
        """All lines of the job in order, written to manifest.jsonl; None while tasks are missing.

        The tokens of all documents are joined first, so that a finished job has both.

        Args:
          record: of the job.
        """
        whole = self._folder / MANIFEST
        if whole.exists():
            return read_manifest(self._folder)
        parts = [self._part(task) for task in range(self._num_tasks)]
        try:
            texts = [text for part in parts for text in part.read_text().splitlines()]
            lines = {line["number"]: line for line in map(json.loads, texts)}
            numbers = sorted(lines)
            if len(numbers) < self._num:
                return None
            record.join(numbers)
        except ValueError:
            return None  # another task is writing a line just now
        except FileNotFoundError:
            if whole.exists():  # another task has finished the job meanwhile
                return read_manifest(self._folder)
            if all(part.exists() for part in parts):
                raise  # tokens are missing
            return None
        joined = [lines[number] for number in numbers]
        write_atomically(whole, _text(joined).encode())
        record.remove_parts()
        for part in parts:
            part.unlink(missing_ok=True)
        return joined


def read_manifest(folder: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a finished job. Raises FileNotFoundError if it is not finished."""
    return [json.loads(text) for text in (epath.Path(folder) / MANIFEST).read_text().splitlines()]


def _text(lines: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
