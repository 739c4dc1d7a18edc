"""The Python interface: a trained model that samples, completes and scores documents in memory.

`jpeglm_jax.load` returns a `Model`. The command `generate` writes the same documents to files, in
a job that can be resumed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import warnings
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.representations import contact_sheet
from data_pipelines.representations.base import Representation
from data_pipelines.utils.cpus import num_cpus
from jpeglm_jax.generation import options, prompts
from jpeglm_jax.generation.constraint import make_constraint
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.prompts import Medium, Request
from jpeglm_jax.generation.sampling import Sample, SamplingParams
from jpeglm_jax.generation.scoring import Scorer
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

# Engines that are kept; each holds compiled functions.
_MAX_ENGINES = 8

# A path, a PIL image, frames uint8 [T, height, width, 3], or tokens, integer [n].
Document = str | os.PathLike[str] | Image.Image | np.ndarray


def load(workdir: epath.PathLike, step: int | None = None) -> Model:
    """See `jpeglm_jax.load`."""
    with contextlib.suppress(RuntimeError):  # JAX has run: its devices stay as they are
        sharding.split_cpu(num_cpus())
    return Model(checkpoint.load(workdir, step))


class Samples(Sequence[Any]):
    """Sampled documents, as a sequence of media; a slice is `Samples` again.

    A medium is a PIL image, or the frames of a clip as uint8 [T, height, width, 3]; it is None if
    nothing of the document can be decoded. Notebooks show a grid of them.

    Args:
      representation: of the model.
      samples: the N documents.
      labels: of each; -1 for none.

    Attributes:
      tokens: integer [n] of each document, its prompt included, without start and end token.
      labels: int64 [N]; -1 for none.
      log_likelihood: float64 [N], of the sampled tokens (not of the prompt), in nats, under the
        model itself: before temperature, filters, guidance and constraint. With the end token
        where the document is complete.
      complete: bool [N], whether the model ended the document; otherwise it has been cut, see
        `TrainedModel.sampling_len`.
    """

    def __init__(
        self, representation: Representation, samples: Sequence[Sample], labels: Sequence[int]
    ):
        self._representation, self._samples = representation, list(samples)
        self.labels = np.array(labels, np.int64)
        self.tokens = [sample.tokens for sample in samples]
        self.log_likelihood = np.array([sample.log_likelihood for sample in samples], np.float64)
        self.complete = np.array([sample.complete for sample in samples], bool)

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """Whether an encoder could have written each document, bool [N]."""
        found = self._representation.validate_batch(self.tokens)
        return np.array([validity.valid for validity in found], bool)

    @functools.cached_property
    def files(self) -> list[bytes | None]:
        """The file of each document.

        None where the representation has no files, or a token stands for no content.
        """
        return [self._file(tokens) for tokens in self.tokens]

    def _file(self, tokens: np.ndarray) -> bytes | None:
        if not self._representation.suffix:
            return None
        try:
            return self._representation.to_bytes(tokens)
        except ValueError:  # a token that stands for no content
            return None

    @functools.cached_property
    def _media(self) -> list[Any]:
        return self._representation.decode_batch(self.tokens)

    def grid(self, columns: int = 0) -> Image.Image:
        """All documents in one RGB image: images in a grid, clips with one row of frames each.

        Args:
          columns: images in a row; 0 for a square grid.

        Raises:
          ValueError: there is no document.
        """
        return contact_sheet.sheet_of_documents(self._representation, self.tokens, columns)

    def _repr_png_(self) -> bytes | None:
        """The grid as a PNG file, for notebooks."""
        if not self:
            return None
        buffer = io.BytesIO()
        self.grid().save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        return f"<{len(self)} samples, {self.valid.sum()} strictly valid>"

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Samples(self._representation, self._samples[index], self.labels[index].tolist())
        return self._media[index]


class Model:
    """A trained model in memory. `jpeglm_jax.load` returns it.

    `sample` and `complete` have these options in common:

      seed: with the number of a document in its call (0, 1, ...) it decides the document, for one
        `batch_size`. The command `generate` samples the same documents.
      temperature, top_k, top_p, min_p, guidance: see `sampling.SamplingParams`. None: the value of
        the run (`config.sample`).
      constrain: sample valid documents only; of clips it covers what docs/video.md states.
      size: (width, height) in pixels of constrained documents, for a model of media that differ in
        size; otherwise None.
      batch_size: documents sampled together.

    The first call with other options than before compiles for some seconds.

    Args:
      trained: the weights, with the configuration and representation of their run.

    Attributes:
      trained: the same.
    """

    def __init__(self, trained: TrainedModel):
        self.trained = trained
        self._engines: dict[Any, Engine] = {}  # by their options, the latest last
        self._scorers: dict[int, Scorer] = {}

    @property
    def representation(self) -> Representation:
        """What the tokens mean: `encode`, `decode`, `validate` and more."""
        return self.trained.representation

    @property
    def config(self) -> ConfigDict:
        """The configuration of the run."""
        return self.trained.config

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return self.trained.step

    def sample(
        self,
        num: int = 1,
        *,
        label: int | Sequence[int] | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        guidance: float | None = None,
        constrain: bool = False,
        size: tuple[int, int] | None = None,
        batch_size: int = 64,
    ) -> Samples:
        """Samples documents.

        Args:
          num: how many.
          label: of all of them, or one for each; None: all labels of the model in turn, and none
            for a model without labels.
          seed, temperature, top_k, top_p, min_p, guidance, constrain, size, batch_size: see the
            class.

        Raises:
          ValueError: an option out of range, a label that the model does not know, guidance of a
            model without labels, or a constraint that the representation does not have.
        """
        if label is None:
            labels = prompts.cycle_labels(self.representation, num)
        else:
            labels = self._labels(num, label)
        return self._run(
            prompts.label_requests(self.representation, labels),
            seed=seed,
            constrain=constrain,
            size=size,
            batch_size=batch_size,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
        )

    def complete(
        self,
        document: Document,
        ratio: float = 0.5,
        num: int = 1,
        *,
        label: int | Sequence[int] | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        guidance: float | None = None,
        constrain: bool = False,
        size: tuple[int, int] | None = None,
        batch_size: int = 64,
    ) -> Samples:
        """Completes a medium from its beginning.

        Args:
          document: see `tokens`; media are fitted to the representation as in training.
          ratio: the part of the medium that is given, 0 to 1; see `Representation.prompt`.
          num: how many completions.
          label: of all of them, or one for each; None: no label, as in training a part of the
            documents had (data.label_dropout).
          seed, temperature, top_k, top_p, min_p, guidance, constrain, size, batch_size: see the
            class.

        Raises:
          ValueError: as `sample`; the document cannot be used; the given part leaves no room in the
            sequence length; or no valid document begins with it (`constrain`).
        """
        labels = self._labels(num, label)
        medium = Medium("document", self.tokens(document))
        by_label = {
            each: prompts.completion_requests(
                self.representation, [medium], ratio, label=each, seq_len=self.config.seq_len
            ).requests[0]
            for each in set(labels)
        }
        return self._run(
            [by_label[each] for each in labels],
            seed=seed,
            constrain=constrain,
            size=size,
            batch_size=batch_size,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
        )

    def log_likelihood(
        self,
        documents: Sequence[Document] | Samples,
        *,
        label: int | Sequence[int] | None = None,
        batch_size: int = 16,
    ) -> np.ndarray:
        """The exact log-likelihoods of documents, with their end tokens.

        `evals.likelihood` reports the same in bits (with `label`, conditioning=label; else none).
        Documents longer than the sequence length are scored in overlapping windows that advance by
        half of it.

        Args:
          documents: see `tokens`; of `Samples`, their tokens.
          label: of all of them, or one for each; None: no label, as in training a part of the
            documents had (data.label_dropout).
          batch_size: rows of the sequence length computed together.

        Returns:
          float64 [N], in nats per document; divided by -ln 2, the bits of a document.

        Raises:
          ValueError: a document cannot be used, or a label that the model does not know.
        """
        if isinstance(documents, str | os.PathLike | Image.Image):
            raise ValueError(
                f"found one document, {documents!r}; expected a list of documents, [document]"
            )
        found = documents.tokens if isinstance(documents, Samples) else documents
        tokens = [self.tokens(document) for document in found]
        labels = self._labels(len(tokens), label)
        starts = [prompts.start_token(self.representation, each) for each in labels]
        if batch_size not in self._scorers:
            self._scorers[batch_size] = Scorer(self.trained, batch_size=batch_size)
        values = self._scorers[batch_size](zip(starts, tokens, strict=True))
        return np.fromiter(values, np.float64, len(tokens))

    def tokens(self, document: Document) -> np.ndarray:
        """The tokens of a document, integer [n], without start and end token.

        Args:
          document: the path of a file (local or remote), a PIL image, the frames of a clip as uint8
            [T, height, width, 3], or tokens, integer [n], which are returned unchanged. A file that
            the representation could have written keeps its bytes; others are decoded, fitted and
            encoded.

        Raises:
          ValueError: it cannot be read or encoded, a file holds several clips, or a token is not in
            the vocabulary.
        """
        if isinstance(document, str | os.PathLike):
            return self._read(epath.Path(document))
        if isinstance(document, np.ndarray) and document.ndim == 1:
            return self._check_tokens(document)
        images = self.representation.kind == "image"
        if not isinstance(document, Image.Image if images else np.ndarray):
            medium = "a PIL image" if images else "frames, uint8 [T, height, width, 3]"
            raise ValueError(
                f"found a document of type {type(document).__name__}; expected a path, {medium}, "
                "or tokens, an integer array [n]"
            )
        return self.representation.encode(document)

    def _read(self, path: epath.Path) -> np.ndarray:
        file = path.read_bytes()
        try:
            tokens = self.representation.from_bytes(file)
        except ValueError:  # another header, or a representation without files
            tokens = None
        if tokens is not None and self.representation.validate(tokens).valid:
            return tokens
        media = list(itertools.islice(self.representation.open(file), 2))
        if len(media) != 1:
            raise ValueError(
                f"{path} holds {'several clips' if media else 'no medium'}; expected one: cut the "
                "file, or pass the frames of one clip"
            )
        return self.representation.encode(media[0])

    def _check_tokens(self, tokens: np.ndarray) -> np.ndarray:
        vocab_size = self.representation.vocab_size
        if not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"found tokens of type {tokens.dtype}; expected integers")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise ValueError(
                f"found tokens from {tokens.min()} to {tokens.max()}; expected 0 to "
                f"{vocab_size - 1}, the vocabulary of the model"
            )
        return tokens

    def _labels(self, num: int, label: int | Sequence[int] | None) -> list[int]:
        """The label of each of `num` documents; all -1 if `label` is None."""
        if label is None:
            if self.representation.num_labels and not self.config.data.label_dropout:
                warnings.warn(
                    "the model was never trained on documents without a label; give a label",
                    stacklevel=3,
                )
            return [-1] * num
        labels = [label] * num if isinstance(label, int | np.integer) else list(label)
        if len(labels) != num:
            raise ValueError(f"found {len(labels)} labels for {num} documents; expected one each")
        return [options.check_label(self.representation, int(each)) for each in labels]

    def _run(
        self,
        requests: Sequence[Request],
        *,
        seed: int,
        constrain: bool,
        size: tuple[int, int] | None,
        batch_size: int,
        **sampling: float | None,
    ) -> Samples:
        """Samples a document for each request, in their order."""
        if not requests:
            raise ValueError("there is nothing to sample; expected num to be 1 or more")
        sampling_params = options.resolve_sampling_params(self.trained, sampling)
        rows = min(batch_size, len(requests))
        starts = [request.prompt for request in requests]
        seq_len = self.trained.sampling_len(starts, other_size=size is not None)
        engine = self._engine(sampling_params, rows, seq_len, seed, constrain, size)
        found = engine(self.trained.params, starts)
        samples = sorted(found, key=lambda sample: sample.number)
        return Samples(self.representation, samples, [request.label for request in requests])

    def _engine(
        self,
        sampling_params: SamplingParams,
        batch_size: int,
        seq_len: int,
        seed: int,
        constrain: bool,
        size: tuple[int, int] | None,
    ) -> Engine:
        """The engine with these options. The latest are kept, with their compiled functions."""
        parts = sharding.axis_size(self.trained.mesh, "batch")
        batch_size = -(-batch_size // parts) * parts  # as the engine rounds it up
        key = (sampling_params, batch_size, seq_len, seed, constrain, size)
        engine = self._engines.pop(key, None)
        if engine is None:
            engine = Engine(
                self.trained.spec,
                self.trained.mesh,
                sampling_params,
                batch_size=batch_size,
                seq_len=seq_len,
                seed=seed,
                eos=self.representation.eos,
                bos=self.representation.bos,
                constraint=make_constraint(self.representation, size) if constrain else None,
            )
        self._engines[key] = engine
        if len(self._engines) > _MAX_ENGINES:
            del self._engines[next(iter(self._engines))]
        return engine
