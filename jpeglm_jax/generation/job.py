"""A generation job: samples a document for each request, and records its tokens and its file.

The command `generate` and the evaluations call it. The engine samples. The manifest records
finished documents, so that a stopped job resumes. Pictures of the result are written at the end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from data_pipelines.representations.base import Representation
from data_pipelines.utils.files import write_atomically
from data_pipelines.utils.lease import Lease
from data_pipelines.utils.seeds import check_seed
from jpeglm_jax.generation import pictures
from jpeglm_jax.generation.constraint import Constraint
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.manifest import MANIFEST, Manifest, claim_folder, read_manifest
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
    size: str | None = None,
    originals: Mapping[str, np.ndarray] | None = None,
    reencode_damaged: bool = False,
    task: int = 0,
    num_tasks: int = 1,
) -> Counts | None:
    """Samples a document for each request and writes it; finished documents are kept.

    A folder belongs to one job, and a task of it to one process at a time.

    Args:
      model: the model that is sampled from.
      out: folder for the files, manifest.jsonl and pictures, see `pictures.write_pictures`.
      requests: the documents.
      sampling_params: how tokens are sampled.
      seed: with its number it decides a document; 0 <= seed < 2**32.
      batch_size: documents sampled together.
      constraint: which tokens may come next.
      size: the size of the media that the constraint is for, where they differ; for messages.
      originals: tokens of the media that are completed, by their key.
      reencode_damaged: what can be shown of a document that is not valid also becomes a file that
        players open, NUMBER.reencoded.SUFFIX, named in its line; the document stays invalid.
      task, num_tasks: which share of the documents to sample, where several processes share a job.

    Returns:
      Counts of the whole job; None while other tasks have not finished.

    Raises:
      JobError: `out` holds the output of another job, or files of no job.
      FolderInUse: another process samples the same task of the job.
      WriteError: the disk is full.
      ValueError: a request that cannot be sampled, no request, or a number out of range.
    """
    check_seed(seed)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
    if not requests:
        raise ValueError("there is no document to sample; expected 1 or more")
    if not 0 <= task < num_tasks:
        raise ValueError(f"task is {task}; expected 0 to {num_tasks - 1}")
    out = epath.Path(out)
    settings = job_settings(
        model,
        requests,
        sampling_params,
        seed=seed,
        batch_size=batch_size,
        constraint=constraint,
        size=size,
        originals=originals,
        reencode_damaged=reencode_damaged,
        num_tasks=num_tasks,
    )
    claim_folder(out, settings, model.workdir)
    if pictures.are_written(out) and (out / MANIFEST).exists():
        return _counts(read_manifest(out))
    lease = Lease(out, file=f"lease-{task:05d}-of-{num_tasks:05d}.json", report=print)
    with lease:
        claim_folder(out, settings, model.workdir)  # another job may have begun at the same moment
        return _run_task(
            model,
            out,
            requests,
            sampling_params,
            lease,
            seq_len=settings["seq_len"],
            seed=seed,
            batch_size=batch_size,
            constraint=constraint,
            originals=originals or {},
            reencode_damaged=reencode_damaged,
            task=task,
            num_tasks=num_tasks,
        )


def _run_task(
    model: TrainedModel,
    out: epath.Path,
    requests: Sequence[Request],
    sampling_params: SamplingParams,
    lease: Lease,
    *,
    seq_len: int,
    seed: int,
    batch_size: int,
    constraint: Constraint | None,
    originals: Mapping[str, np.ndarray],
    reencode_damaged: bool,
    task: int,
    num_tasks: int,
) -> Counts | None:
    """Samples the missing documents of a task, and finishes the job if no other is missing."""
    representation = model.representation
    manifest = Manifest(out, len(requests), task, num_tasks)
    record = TokenRecord(out, representation.token_dtype)
    missing = manifest.missing
    if missing:
        representation.save(out)
        engine = Engine(
            model.spec,
            model.mesh,
            sampling_params,
            batch_size=batch_size,
            seq_len=seq_len,
            seed=seed,
            eos=representation.eos,
            bos=representation.bos,
            constraint=constraint,
        )
        samples = engine(model.params, [requests[n].prompt for n in missing], missing)
        for sample in tqdm.tqdm(samples, total=len(missing), unit=representation.medium):
            lease.check()
            request = requests[sample.number]
            record.add(sample.number, sample.tokens)
            line = write_document(representation, out, sample, request, seed)
            if reencode_damaged and not line["valid"]:
                line["reencoded"] = _write_reencoded(representation, out, sample)
            manifest.add(line)
    lines = manifest.finish(record)
    if lines is None:
        return None
    pictures.write_pictures(representation, out, lines, Tokens(out, lines), requests, originals)
    return _counts(lines)


def _counts(lines: Sequence[Mapping[str, Any]]) -> Counts:
    return Counts(
        len(lines), sum(line["valid"] for line in lines), sum(bool(line["file"]) for line in lines)
    )


def job_settings(
    model: TrainedModel,
    requests: Sequence[Request],
    sampling_params: SamplingParams,
    *,
    seed: int,
    batch_size: int,
    constraint: Constraint | None,
    size: str | None = None,
    originals: Mapping[str, np.ndarray] | None = None,
    reencode_damaged: bool = False,
    num_tasks: int = 1,
) -> dict[str, Any]:
    """All that decides the output of a job, as JSON values: the contents of its job.json.

    Arguments are those of `generate`. Values that are too long, such as weights and prompts, are
    represented by a digest.
    """
    sources = [request.source for request in requests]
    completes = any(sources) or any(len(request.prompt) > 1 for request in requests)
    ratios = sorted({float(request.ratio) for request in requests})
    return {
        "step": model.step,
        "weights": model.weights_digest,
        "representation": model.representation.fingerprint,
        "seq_len": model.sampling_len(
            [request.prompt for request in requests], other_size=size is not None
        ),
        "num": len(requests),
        "num_tasks": num_tasks,
        "labels": _described([request.label for request in requests]),
        "prompts": _digest([request.prompt[1:] for request in requests]) if completes else None,
        "prefix_ratio": ratios[0] if len(ratios) == 1 else ratios,
        "prompt_share": float(np.mean([request.share for request in requests])),
        "sources": _hex(json.dumps(sources).encode()) if any(sources) else None,
        "originals": _digest([originals[key] for key in sorted(originals)]) if originals else None,
        "constraint": None if constraint is None else _digest(jax.tree.leaves(constraint)),
        "size": size,
        "seed": seed,
        "batch_size": batch_size,
        **({"reencode_damaged": True} if reencode_damaged else {}),
        **dataclasses.asdict(sampling_params),
    }


def _described(labels: Sequence[int]) -> int | str:
    """The labels in the order of the documents: one number, or words."""
    count = max(labels) + 1
    if len(set(labels)) == 1:
        return labels[0]
    if list(labels) == [number % count for number in range(len(labels))]:
        return f"0 to {count - 1} in turn"
    return f"{len(set(labels))} labels, digest {_digest([np.asarray(labels, np.int64)])}"


def _digest(arrays: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        if array.dtype.kind in "iu":
            array = array.astype("<i8")
        found.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


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


def _write_reencoded(representation: Representation, out: epath.Path, sample: Sample) -> str:
    """Writes what can be shown of a damaged document, encoded again.

    Returns the file's name; "" if nothing can be shown. Raises WriteError (disk full).
    """
    try:
        found = representation.reencoded(sample.tokens)
    except ValueError:  # nothing can be shown; the line of the manifest has the reason
        return ""
    if found is None:
        return ""
    suffix, data = found
    name = f"{sample.number:06d}.reencoded{suffix}"
    write_atomically(out / name, data)
    return name
