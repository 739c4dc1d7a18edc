"""manifest.jsonl: a line about every document of a generation job.

Each task writes the lines of finished documents to a file of its own; a job that resumes reads that
file and samples the missing documents. When no document is missing, the files of all tasks become
manifest.jsonl, ordered by number: it exists only if the job is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from data_pipelines.utils.files import is_remote, write_atomically
from jpeglm_jax.generation.tokens import TokenRecord

MANIFEST = "manifest.jsonl"
_JOB = "job.json"


class JobError(ValueError):
    """A folder that holds the output of another generation job."""


class Manifest:
    """The lines of one task of a job.

    Args:
      folder: of the job; made if missing.
      job: settings that decide its output, as JSON values; a folder of another job is refused.
      num: documents of the whole job.
      task, num_tasks: task i of n samples the documents whose number leaves i when divided by n.

    Raises:
      JobError: the folder holds the output of another job; names the settings that differ.
      WriteError: the disk is full.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        job: dict[str, Any],
        num: int,
        task: int = 0,
        num_tasks: int = 1,
    ):
        self._folder = epath.Path(folder)
        self._num, self._task, self._num_tasks = num, task, num_tasks
        self._folder.mkdir(parents=True, exist_ok=True)
        self._claim(job | {"num": num, "num_tasks": num_tasks})
        self._path = self._part(task)
        self._lines = self._whole_lines()

    def _claim(self, job: dict[str, Any]) -> None:
        path = self._folder / _JOB
        if not path.exists():
            write_atomically(path, (json.dumps(job, indent=1, sort_keys=True) + "\n").encode())
            return
        theirs = json.loads(path.read_text())
        differing = [
            f"{name} is {job.get(name)!r} here and {theirs.get(name)!r} there"
            for name in sorted(job.keys() | theirs.keys())
            if job.get(name) != theirs.get(name)
        ]
        if differing:
            raise JobError(
                f"{self._folder} holds the output of another job: {'; '.join(differing)}; give "
                "another --out, or remove the folder"
            )

    def _part(self, task: int) -> epath.Path:
        return self._folder / f"manifest-{task:05d}-of-{self._num_tasks:05d}.jsonl"

    def _whole_lines(self) -> list[dict[str, Any]]:
        """Lines of this task; a line that a kill cut short is dropped."""
        whole = self._folder / MANIFEST
        if whole.exists():
            lines = [json.loads(text) for text in whole.read_text().splitlines()]
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
                file.write(json.dumps(line) + "\n")
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
            return [json.loads(text) for text in whole.read_text().splitlines()]
        parts = [self._part(task) for task in range(self._num_tasks)]
        if not all(part.exists() for part in parts):
            return None
        texts = [text for part in parts for text in part.read_text().splitlines()]
        try:
            lines = [json.loads(text) for text in texts]
        except ValueError:
            return None  # another task is writing a line just now
        if len({line["number"] for line in lines}) < self._num:
            return None
        lines.sort(key=lambda line: line["number"])
        try:
            record.join([line["number"] for line in lines])
        except FileNotFoundError:
            if whole.exists():  # another task has finished the job meanwhile
                return lines
            raise
        write_atomically(whole, _text(lines).encode())
        record.remove_parts()
        for part in parts:
            part.unlink(missing_ok=True)
        return lines


def read_manifest(folder: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a finished job. Raises FileNotFoundError if it is not finished."""
    return [json.loads(text) for text in (epath.Path(folder) / MANIFEST).read_text().splitlines()]


def _text(lines: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)
