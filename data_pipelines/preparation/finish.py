"""The last step of preparation: drops duplicates, writes the index and the manifest.

It reads tables and sidecars only, always writes the same files, and does nothing before the last
shard is finished. So every task of an array job can call it.
"""

from __future__ import annotations

import collections
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines.preparation import duplicates, listing
from data_pipelines.preparation.job import Job
from data_pipelines.shards import reader, storage
from data_pipelines.utils.files import remove_unfinished, to_json, write_atomically

REJECTS = "rejects.jsonl"
DUPLICATES = "duplicates.jsonl"
_REASONS = 20
_ABANDONED_SECONDS = 3600
_KEPT = ("name", "documents", "images", "tokens", "rejects", "records", "table")


def finish(job: Job) -> dict[str, Any] | None:
    """Writes the manifest and returns it; None if shards are still missing.

    Raises:
      ShardError: every image was rejected, or a table is damaged.
    """
    sidecars = _sidecars(job)
    if sidecars is None:
        return None
    rejects = _write_rejects(job)
    if not any(sidecar["documents"] for sidecar in sidecars.values()):
        raise storage.ShardError(
            f"{job.folder}: all {rejects['count']} {job.kind}s were rejected; the most common "
            f"reasons: {rejects['reasons']}"
        )
    dropped, duplicate_facts = _drop_duplicates(job, sidecars)
    splits = {split: _split(job, split, sidecars, dropped) for split in job.num_shards}
    manifest = {
        "format": reader.FORMAT,
        "job": job.id,
        "representation": job.facts["representation"],
        "settings": job.settings,
        "token_dtype": job.facts["token_dtype"],
        "encoder": job.facts["encoder"],
        "writer_options": storage.WRITER_OPTIONS,
        "label_names": job.facts["label_names"],
        "items": job.facts["items"],
        "skipped": job.facts["skipped"],
        "warnings": job.facts["warnings"],
        "rejects": rejects,
        "duplicates": duplicate_facts,
        "splits": splits,
    }
    write_atomically(job.folder / reader.MANIFEST, to_json(manifest))
    # Another task may be finishing too: remove only files that are old enough to be abandoned.
    remove_unfinished(job.folder, older_than=_ABANDONED_SECONDS)
    return manifest


def histogram(reasons: Iterator[str] | list[str]) -> dict[str, int]:
    """Counts reasons without their numbers and quoted names; rare ones share one entry."""
    counts = collections.Counter(_kind(reason) for reason in reasons)
    common = dict(counts.most_common(_REASONS))
    others = counts.total() - sum(common.values())
    return {**common, "other reasons": others} if others else common


def _kind(reason: str) -> str:
    reason = re.sub(r"""'[^']*'|\"[^\"]*\"""", "'..'", reason)
    return re.sub(r"\d+", "N", reason)


def _sidecars(job: Job) -> dict[str, Any] | None:
    """The sidecar of every shard by name; None if any shard is missing."""
    names = [name for _, name in job.names()]
    present = {path.name for path in job.folder.iterdir()}  # one request to a bucket
    if not present.issuperset(storage.sidecar_path("", name).name for name in names):
        return None
    sidecars = {}
    for name in names:
        sidecar = storage.read_sidecar(job.folder, name)
        if sidecar is None or sidecar["job"] != job.id:
            return None
        sidecars[name] = sidecar
    return sidecars


def _write_rejects(job: Job) -> dict[str, Any]:
    """Joins the rejects of the listing and of every shard into one file."""
    rejects = listing.read_rejects(job.folder)
    for _, name in job.names():
        rejects += storage.read_rejects(job.folder, name)
    rejects.sort()
    data = storage.rejects_to_bytes(rejects)
    write_atomically(job.folder / REJECTS, data)
    return {
        "file": REJECTS,
        "count": len(rejects),
        "sha256": hashlib.sha256(data).hexdigest(),
        "reasons": histogram(reject.reason for reject in rejects),
    }


def _drop_duplicates(
    job: Job, sidecars: Mapping[str, Any]
) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """Images to drop, by shard name, and the manifest's entry on duplicates."""
    if not job.settings["drop_duplicates"]:
        return {}, {"dropped": False, "count": 0}
    names = [name for _, name in job.names()]
    found = duplicates.find(job.folder, names, sum(s["images"] for s in sidecars.values()))
    data = b"".join(to_json(line, indent=None) for line in found.lines)
    write_atomically(job.folder / DUPLICATES, data)
    return found.images, {
        "dropped": True,
        "count": len(found.lines),
        "file": DUPLICATES,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _split(
    job: Job, split: str, sidecars: Mapping[str, Any], dropped: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Writes the index of a split and returns the split's part of the manifest."""
    names = [name for part, name in job.names() if part == split]
    index, images = _index(job, names, dropped)
    buffer = io.BytesIO()
    np.savez(buffer, **index)  # type: ignore[arg-type]
    index_file = f"{split}.index.npz"
    write_atomically(job.folder / index_file, buffer.getvalue())
    index_hash = hashlib.sha256(buffer.getvalue()).hexdigest()
    parts = [{key: sidecars[name][key] for key in _KEPT} for name in names]
    hashes = [part[file]["sha256"] for part in parts for file in ("records", "table")]
    return {
        "documents": len(index["lengths"]),
        "images": images,
        "tokens": int(index["lengths"].sum(dtype=np.uint64)),
        "codec_bytes": int(index["codec_bytes"].sum(dtype=np.uint64)),
        "dropped": len(index["dropped"]),
        "sha256": hashlib.sha256("".join([index_hash, *hashes]).encode()).hexdigest(),
        "index": {"file": index_file, "bytes": len(buffer.getvalue()), "sha256": index_hash},
        "shards": parts,
    }


def _index(
    job: Job, names: list[str], dropped: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], int]:
    """The index of a split and its number of kept images.

    The index has lengths, codec bytes and labels of kept documents and the indices of dropped ones.
    """
    lengths, codec_bytes, labels, dropped_documents = [], [], [], []
    start = num_images = 0
    for name in names:
        table = storage.TableReader(storage.table_path(job.folder, name))
        images = table.column("images")
        keep = ~np.isin(images, dropped.get(name, np.zeros(0, np.uint32)))
        lengths.append(table.column("lengths")[keep])
        codec_bytes.append(table.column("codec_bytes")[keep])
        labels.append(table.column("labels")[images[keep]])
        dropped_documents.append(np.flatnonzero(~keep).astype(np.uint64) + np.uint64(start))
        start += len(images)
        num_images += len(np.unique(images[keep]))
    columns = {
        "lengths": np.concatenate(lengths),
        "codec_bytes": np.concatenate(codec_bytes),
        "labels": np.concatenate(labels),
        "dropped": np.concatenate(dropped_documents),
    }
    return columns, num_images
