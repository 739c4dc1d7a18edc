"""Memory and time of checkpoint conversion, for a model larger than memory.

    python -m benchmarks.convert [--layers=8] [--folder=SCRATCH]

Makes a random bfloat16 checkpoint of the width and vocabulary of JPEG-LM's 7B (32 layers are the
whole model), converts it to a workdir and back, each in a process of its own, and compares the
files. The peak is the max resident memory of that process. The time is compared with `cp` of the
same files, the time of the disk alone. Needs about 11 bytes of disk per parameter, freed at the
end. Writes `benchmarks/results/convert.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from data_pipelines.representations.tokenizer import train_bpe
from jpeglm_jax.convert import SHARD_BYTES, num_parameters
from jpeglm_jax.huggingface import config, safetensors, weights
from jpeglm_jax.model.config import ModelConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "convert.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=None, help="for temporary files")
    args = parser.parse_args()
    model = ModelConfig(vocab_size=320, layers=args.layers)
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        original, run, back = (Path(scratch) / name for name in ("original", "run", "back"))
        make_checkpoint(original, model)
        result = {
            "command": f"python -m benchmarks.convert --layers={args.layers}",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "parameters": num_parameters(model),
            "checkpoint_gigabytes": gigabytes(original),
            "copy_seconds": measure("cp", "-r", str(original), f"{scratch}/copy")["seconds"],
        }
        shutil.rmtree(Path(scratch) / "copy")
        result["from_hf"] = convert("from_hf", run, original)
        result["from_hf"]["written_gigabytes"] = gigabytes(run)
        result["to_hf"] = convert("to_hf", run, back)
        result["there_and_back_is_identical"] = digests(original) == digests(back)
    RESULTS.parent.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2)
    RESULTS.write_text(text + "\n")
    print(text)


def make_checkpoint(folder: Path, model: ModelConfig) -> None:
    """Writes a checkpoint of random weights, tensor by tensor."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [(name, w.tensor_shape) for w in weights.table(model) for name in w.names]

    def tensors() -> Iterator[np.ndarray]:
        for _, shape in names:
            yield rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    shards = safetensors.plan(names, "bfloat16", SHARD_BYTES)
    safetensors.write(epath.Path(folder), shards, "bfloat16", tensors())
    config_json = config.to_json(model, seq_len=12_288, bos=1, eos=2, dtype="bfloat16")
    (folder / "config.json").write_text(config_json)
    (folder / "tokenizer.model").write_bytes(train_bpe([rng.bytes(100_000)]))


def convert(direction: str, workdir: Path, hf_dir: Path) -> dict[str, Any]:
    arguments = [direction, f"--workdir={workdir}", f"--hf_dir={hf_dir}"]
    return measure(sys.executable, "-m", "jpeglm_jax.convert", *arguments)


def measure(*command: str) -> dict[str, Any]:
    """Runs a command; returns its time and its peak resident memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "peak_gigabytes": round(usage.ru_maxrss * 1024 / 1e9, 2)}


def gigabytes(folder: Path) -> float:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return round(size / 1e9, 2)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each tensor's bytes."""
    return {
        name: hashlib.sha256(tensor.read().tobytes()).hexdigest()
        for name, tensor in safetensors.open_folder(folder).items()
    }


if __name__ == "__main__":
    main()
