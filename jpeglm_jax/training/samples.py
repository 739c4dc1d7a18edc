"""Samples of a run: a grid to look at, and how many of them are valid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.loading.joined_shards import JoinedShards
from data_pipelines.representations import contact_sheet
from jpeglm_jax.generation import prompts
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.training.data import RunData


class Sampler:
    """Samples documents with the weights of a run.

    Args:
      config: `config.sample`.
      spec: the model without its weights.
      mesh: where the weights lie.
      documents: of the eval split, whose beginnings are completed where the config asks for it.
      seq_len: sequence length, the limit of a document that continues a real one.
      longest: limit of a document that is sampled from its label; see `TrainedModel.sampling_len`.
      seed: decides what is sampled.
      check: called after each document.
    """

    def __init__(
        self,
        config: ConfigDict,
        spec: ModelSpec,
        mesh: Mesh,
        documents: JoinedShards,
        *,
        seq_len: int,
        longest: int,
        seed: int,
        check: Callable[[], None],
    ):
        self._representation, self._check = documents.representation, check
        requests = prompts.sample_requests(config, documents, seq_len)
        self._prompts = [request.prompt for request in requests]
        self._continues = any(len(prompt) > 1 for prompt in self._prompts)
        self._engine = Engine(
            spec,
            mesh,
            SamplingParams.from_config(config),
            batch_size=min(config.num, config.batch_size),
            seq_len=seq_len if self._continues else longest,
            seed=seed,
            eos=self._representation.eos,
            bos=self._representation.bos,
        )

    @classmethod
    def of_run(
        cls,
        config: ConfigDict,
        spec: ModelSpec,
        mesh: Mesh,
        data: RunData,
        check: Callable[[str], None],
    ) -> Sampler | None:
        """The sampler that a run's configuration asks for; None if it never samples."""
        if not (config.sample.every and config.sample.num):
            return None
        return cls(
            config.sample,
            spec,
            mesh,
            data.eval,
            seq_len=config.seq_len,
            longest=data.longest_document,
            seed=config.seed,
            check=lambda: check("sample"),
        )

    def __call__(self, params: Any) -> list[np.ndarray]:
        """Tokens of each document, integer [n], in the order of the prompts."""
        samples = []
        for sample in self._engine(params, self._prompts):
            self._check()
            samples.append(sample)
        samples.sort(key=lambda sample: sample.number)
        return [sample.tokens for sample in samples]

    def metrics(self, documents: list[np.ndarray]) -> dict[str, float]:
        """The share of documents that are strictly valid.

        `samples/valid`; `continuations/valid` where the documents continue real media.
        """
        judged = self._representation.validate_batch(documents)
        share = sum(one.valid for one in judged) / len(judged)
        return {f"{'continuations' if self._continues else 'samples'}/valid": share}

    def grid(self, documents: list[np.ndarray]) -> Image.Image:
        """All documents in one picture."""
        return contact_sheet.sheet_of_documents(self._representation, documents)


def save_grid(picture: Image.Image, workdir: epath.Path, step: int) -> None:
    """Writes samples/step_STEP.png."""
    (workdir / "samples").mkdir(exist_ok=True)
    contact_sheet.save(picture, workdir / "samples" / f"step_{step:08d}.png")
