"""A generation job: samples a document for each request, and records its tokens and its file.

The command `generate` and the evaluations call it. The engine samples. The manifest records
finished documents, so that a stopped job resumes. Pictures of the result are written at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from etils import epath

from data_pipelines.representations.base import Representation
from data_pipelines.utils.files import write_atomically
from jpeglm_jax.generation import pictures
from jpeglm_jax.generation.constraint import Constraint
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.manifest import Manifest
from jpeglm_jax.generation.prompts import Request
from jpeglm_jax.generation.sampling import Sample, SamplingParams
from jpeglm_jax.generation.tokens import TokenRecord, Tokens
from jpeglm_jax.model.trained import TrainedModel


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of documents of a whole job.

    Attributes:
      requested: all of them.
      valid: strictly valid ones.
      written: those that have a file at all.
    """

    requested: int
    valid: int
    written: int


def generate(
    model: TrainedModel,
    out: epath.PathLike,
    requests: Sequence[Request],
    sampling_params: SamplingParams,
    *,
    seed: int = 0,
    batch_size: int = 64,
    constraint: Constraint | None = None,
    originals: Mapping[str, np.ndarray] | None = None,
    task: int = 0,
    num_tasks: int = 1,
) -> Counts | None:
    """Samples a document for each request and writes it; finished documents are kept.

    Args:
      model: the model that is sampled from.
      out: folder for the files, manifest.jsonl and pictures, see `pictures.write_pictures`.
      requests: the documents.
      sampling_params: how tokens are sampled.
      seed: with its number it decides a document.
      batch_size: documents sampled together.
      constraint: which tokens may come next.
      originals: tokens of the media that are completed, by their key.
      task, num_tasks: which share of the documents to sample, where several processes share a job.

    Returns:
      Counts of the whole job; None while other tasks have not finished.

    Raises:
      JobError: `out` holds the output of another job.
      WriteError: the disk is full.
      ValueError: a request that cannot be sampled.
    """
    out = epath.Path(out)
    representation = model.representation
    manifest = Manifest(
        out,
        _settings(model, sampling_params, seed, batch_size, constraint),
        len(requests),
        task,
        num_tasks,
    )
    record = TokenRecord(out, representation.token_dtype)
    missing = manifest.missing
    if missing:
        representation.save(out)
        engine = Engine(
            model.spec,
            model.mesh,
            sampling_params,
            batch_size=batch_size,
            seq_len=model.config.seq_len,
            seed=seed,
            eos=representation.eos,
            bos=representation.bos,
            constraint=constraint,
        )
        samples = engine(model.params, [requests[n].prompt for n in missing], missing)
        for sample in tqdm.tqdm(samples, total=len(missing), unit=representation.medium):
            request = requests[sample.number]
            record.add(sample.number, sample.tokens)
            manifest.add(write_document(representation, out, sample, request, seed))
    lines = manifest.finish(record)
    if lines is None:
        return None
    documents = Tokens(out, lines)
    pictures.write_pictures(representation, out, lines, documents, requests, originals or {})
    return Counts(
        len(lines), sum(line["valid"] for line in lines), sum(bool(line["file"]) for line in lines)
    )


def _settings(
    model: TrainedModel,
    sampling_params: SamplingParams,
    seed: int,
    batch_size: int,
    constraint: Constraint | None,
) -> dict[str, Any]:
    """The settings that decide the output of a job, besides its requests."""
    return {
        "step": model.step,
        "representation": model.representation.fingerprint,
        "seed": seed,
        "batch_size": batch_size,
        "constrained": constraint is not None,
        **dataclasses.asdict(sampling_params),
    }


def write_document(
    representation: Representation, out: epath.Path, sample: Sample, request: Request, seed: int
) -> dict[str, Any]:
    """Writes the file of a document, if it has one; returns its line of the manifest.

    Raises:
      WriteError: the disk is full.
    """
    validity = representation.validate(sample.tokens)
    name, reason = "", validity.error
    if representation.suffix:
        try:
            data = representation.to_bytes(sample.tokens)
        except ValueError as error:  # a token that stands for no content
            reason = str(error)
        else:
            name = f"{sample.number:06d}{representation.suffix}"
            write_atomically(out / name, data)
    return {
        "number": sample.number,
        "file": name,
        "seed": seed,
        "label": request.label,
        "source": request.source,
        "prompt_tokens": len(request.prompt) - 1,
        "tokens": sample.tokens.size,
        "complete": sample.complete,
        "log_likelihood": sample.log_likelihood,
        "valid": validity.valid,
        "error": reason,
    }
