"""The tokens of a generation job: the record of what was sampled. Files are views of it.

While a job runs, each document's tokens lie in a file of their own, `tokens/NUMBER.npy`. A finished
job has all of them, one after the other in the order of the numbers, in `tokens.npy`; the manifest
has the length of each.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.utils.files import is_remote, write_atomically

TOKENS = "tokens.npy"
_FOLDER = "tokens"


class TokenRecord:
    """Writes the tokens of a job.

    Args:
      folder: of the job; made if missing.
      dtype: of the stored tokens.
    """

    def __init__(self, folder: epath.PathLike, dtype: np.dtype):
        self._folder, self._dtype = epath.Path(folder), dtype.newbyteorder("<")
        (self._folder / _FOLDER).mkdir(parents=True, exist_ok=True)

    def add(self, number: int, tokens: np.ndarray) -> None:
        """Writes the tokens of one document, integer [n]. Raises WriteError (disk full)."""
        write_atomically(self._path(number), _npy(tokens.astype(self._dtype)))

    def join(self, numbers: Sequence[int]) -> None:
        """Writes `tokens.npy` with the tokens of these documents, in this order.

        Raises:
          FileNotFoundError: the tokens of a document are missing.
          WriteError: the disk is full.
        """
        parts = [np.load(io.BytesIO(self._path(n).read_bytes())) for n in numbers]
        joined = np.concatenate([np.zeros(0, self._dtype), *parts])
        write_atomically(self._folder / TOKENS, _npy(joined))

    def remove_parts(self) -> None:
        """Removes the files of single documents, once the job is finished."""
        parts = self._folder / _FOLDER
        if parts.exists():
            parts.rmtree(missing_ok=True)

    def _path(self, number: int) -> epath.Path:
        return self._folder / _FOLDER / f"{number:06d}.npy"


class Tokens(Sequence[np.ndarray]):
    """The tokens of the documents of a finished job, by the index of their line in the manifest.

    Args:
      folder: of the job.
      lines: of its manifest.

    Raises:
      ValueError: there are none, or not as many as the manifest states.
    """

    def __init__(self, folder: epath.PathLike, lines: Sequence[Mapping[str, Any]]):
        path = epath.Path(folder) / TOKENS
        if not path.is_file():
            raise ValueError(f"{folder} has no {TOKENS}; expected the output of a generate job")
        if is_remote(path):
            self._tokens = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        else:
            self._tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        self._ends = np.cumsum([int(line["tokens"]) for line in lines])
        total = int(self._ends[-1]) if len(self._ends) else 0
        if self._tokens.ndim != 1 or self._tokens.dtype.kind != "u" or len(self._tokens) != total:
            raise ValueError(
                f"{path} holds {self._tokens.dtype} {list(self._tokens.shape)}; expected unsigned "
                f"[{total}], the tokens that the manifest states; generate again"
            )

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        end = int(self._ends[index])
        start = int(self._ends[index - 1]) if index else 0
        return np.array(self._tokens[start:end])


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
