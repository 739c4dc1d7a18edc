"""Tokens per second from local shards to batches, compared with Grain's packer on the same shards.

    python -m benchmarks.loader [--documents=20000] [--out=benchmarks/results/loader.json]

Documents are random uint16 tokens of the paper's lengths (log-normal, median 4,500, sigma 0.45),
written as shards; rows have 12,288 positions, batches 32 rows. All candidates read the same shards
from the page cache, in random order, and return batches of tokens, targets, segments and positions
(the project's loader also returns weights). Padding does not count as tokens. The candidates:

  loader             data_pipelines.loading.loader with the global plan
  grain_windows      Grain's best-fit packer with 1,024 bins and the loader's batched reads
  grain_records      the same packer with Grain's ArrayRecord source, as in its documentation

Each runs --repeats times, in turns, so that other load on the machine affects all of them; the best
run counts.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import grain
import numpy as np
from absl import app, flags

from data_pipelines import representations
from data_pipelines.loading.loader import Loader
from data_pipelines.packing.planner import make_plan
from data_pipelines.shards import reader, storage
from data_pipelines.shards.storage import Document
from data_pipelines.utils.cpus import num_cpus

_DOCUMENTS = flags.DEFINE_integer("documents", 20_000, "Documents in the shards.")
_SHARDS = flags.DEFINE_integer("shards", 8, "Number of shards.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows of a batch.")
_THREADS = flags.DEFINE_integer("threads", 2, "Reading threads of each candidate.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs of each candidate.")
_OUT = flags.DEFINE_string("out", "benchmarks/results/loader.json", "File for the results.")

SEQ_LEN = 12_288
BINS = 1_024


def write_shards(folder: pathlib.Path, documents: int, count: int) -> None:
    """Writes random documents as a complete folder of shards."""
    rng = np.random.default_rng(0)
    lengths = np.rint(4500 * np.exp(0.45 * rng.standard_normal(documents))).astype(int)
    lengths = np.minimum(lengths, SEQ_LEN - 1)
    representation = representations.make("jpeg", size=256)
    representation.save(folder)
    parts = []
    for index, numbers in enumerate(np.array_split(np.arange(documents), count)):
        name = storage.stem("train", index, count)
        sidecar = storage.write_shard(
            folder,
            name,
            (
                Document(rng.integers(0, 256, lengths[i], np.uint16), f"{i}", 0, -1, bytes(16))
                for i in numbers
            ),
            [],
            {},
        )
        parts.append({"name": name, **sidecar})
    columns = {
        "lengths": lengths.astype(np.uint32),
        "codec_bytes": lengths.astype(np.uint32),
        "labels": np.full(documents, -1, np.int32),
        "dropped": np.zeros(0, np.uint64),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]
    data = buffer.getvalue()
    (folder / "train.index.npz").write_bytes(data)
    index_facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    split = {
        "index": {"file": "train.index.npz", **index_facts},
        "shards": parts,
        "sha256": index_facts["sha256"],
    }
    manifest = {
        "format": reader.FORMAT,
        "token_dtype": "uint16",
        "label_names": [],
        "representation": {"fingerprint": representation.fingerprint},
        "splits": {"train": split},
    }
    (folder / reader.MANIFEST).write_text(json.dumps(manifest))


def loader_batches(folder: pathlib.Path, repeat: int) -> Iterator[int]:
    """One epoch of the project's loader; yields the number of tokens of each batch."""
    documents = reader.Shards(folder)
    plan = make_plan(documents.lengths + 1, seq_len=SEQ_LEN, seed=repeat)
    loader = Loader(
        documents, plan, batch_size=_BATCH_SIZE.value, threads=_THREADS.value, read_ahead=4
    )
    for batch in loader.eval_batches():
        yield int(batch["weights"].sum())


def frame(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs and targets of a document, the input of Grain's packer."""
    framed = np.empty(tokens.size + 2, np.int32)
    framed[0], framed[1:-1], framed[-1] = 256, tokens, 257
    return {"tokens": framed[:-1], "targets": framed[1:]}


def grain_batches(documents: grain.IterDataset) -> Iterator[int]:
    """Packs and batches framed documents with Grain; yields the number of tokens of each batch."""
    packed = grain.experimental.BestFitPackIterDataset(
        documents, length_struct={"tokens": SEQ_LEN, "targets": SEQ_LEN}, num_packing_bins=BINS
    )
    for batch in packed.batch(_BATCH_SIZE.value):
        yield int(np.count_nonzero(batch["tokens_segment_ids"]))


class Windows:
    """Windows of 256 documents in random order, read as in the loader."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self._documents = reader.Shards(folder)
        self._order = np.random.default_rng(seed).permutation(len(self._documents))

    def __len__(self) -> int:
        return math.ceil(len(self._order) / 256)

    def __getitem__(self, window: int) -> list[dict[str, np.ndarray]]:
        numbers = self._order[256 * window : 256 * (window + 1)].tolist()
        return [frame(tokens) for tokens in self._documents.read(numbers)]


class Flatten(grain.experimental.FlatMapTransform):
    """Splits windows into documents."""

    max_fan_out = 256

    def flat_map(self, element: list[Any]) -> list[Any]:
        return element


def grain_windows(folder: pathlib.Path, repeat: int) -> Iterator[int]:
    options = grain.ReadOptions(_THREADS.value, 4)
    windows = grain.MapDataset.source(Windows(folder, repeat)).to_iter_dataset(options)
    return grain_batches(grain.experimental.FlatMapIterDataset(windows, Flatten()))


def grain_records(folder: pathlib.Path, repeat: int) -> Iterator[int]:
    paths = sorted(str(path) for path in folder.glob("*.array_record"))
    records = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(paths))
    framed = records.shuffle(seed=repeat).map(lambda data: frame(np.frombuffer(data, "<u2")))
    return grain_batches(framed.to_iter_dataset(grain.ReadOptions(_THREADS.value, 500)))


def run(batches: Iterator[int]) -> dict[str, float]:
    """Iterates over one epoch; the clock starts after the first batch."""
    counts = [next(batches)]
    start = time.perf_counter()
    counts += batches
    seconds = time.perf_counter() - start
    positions = len(counts) * _BATCH_SIZE.value * SEQ_LEN
    tokens_per_second = sum(counts[1:]) / seconds
    return {"tokens_per_second": tokens_per_second, "fill": sum(counts) / positions}


def main(_: Sequence[str]) -> None:
    candidates: dict[str, Callable[[pathlib.Path, int], Iterator[int]]] = {
        "loader": loader_batches,
        "grain_windows": grain_windows,
        "grain_records": grain_records,
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_shards(folder, _DOCUMENTS.value, _SHARDS.value)
        for repeat in range(_REPEATS.value):
            for name, batches in candidates.items():
                runs[name].append(run(batches(folder, repeat)))
                print(name, json.dumps(runs[name][-1]), flush=True)
    best = {name: max(part["tokens_per_second"] for part in runs[name]) for name in runs}
    report = {
        "command": "python -m benchmarks.loader " + " ".join(sys.argv[1:]),
        "cores": num_cpus(),
        "processor": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("numpy", "grain", "array-record")},
        },
        "documents": _DOCUMENTS.value,
        "threads": _THREADS.value,
        "batch": [_BATCH_SIZE.value, SEQ_LEN],
        "runs": runs,
        "best_tokens_per_second": best,
        "ratio_to_grain_windows": best["loader"] / best["grain_windows"],
        "ratio_to_grain_records": best["loader"] / best["grain_records"],
    }
    path = pathlib.Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print({name: f"{value / 1e6:.1f} M tokens/s" for name, value in best.items()})


if __name__ == "__main__":
    app.run(main)
