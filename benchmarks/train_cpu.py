"""Training on a CPU compared with `transformers`' Llama in PyTorch: same model, batch, optimiser.

    python -m benchmarks.train_cpu [--peer_python=PYTHON] [--rounds=3]

Ours is the step that `jpeglm_jax.train` runs for the default preset, on one device per core. The
peer is `LlamaForCausalLM` of the same shape, eager, with fused AdamW and clipping, at every number
of threads up to the cores; its attention is plain causal, so it computes no document mask. Each
candidate is a process of its own, with memory in large pages, as in `jpeglm_jax.train`. All of them
run in turn for several rounds; the best round of each counts, and the best number of threads.
PYTHON has torch and transformers (the extra [parity]); by default it is this one. Writes
`benchmarks/results/train_cpu.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data_pipelines.utils.cpus import num_cpus
from jpeglm_jax.hardware.large_pages import restart_with_large_pages

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "train_cpu.json"
WARMUP, STEPS = 4, 16
VOCAB = 268  # bytes, BOS, EOS, ten labels
DOCUMENT = 28  # tokens of a document, about

PEER = """
import json, statistics, sys, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM

shape, rows, length, threads, warmup, steps = json.loads(sys.argv[1])
torch.set_num_threads(threads)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**shape))
optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), fused=True)
tokens = torch.randint(0, 256, (rows, length))
targets = torch.randint(0, 256, (rows, length))
seconds = []
for _ in range(warmup + steps):
    began = time.perf_counter()
    logits = model(tokens, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.perf_counter() - began)
print(json.dumps(statistics.median(seconds[warmup:])))
"""


def ours() -> float:
    """Median seconds of a step; in a process of its own."""
    import jax
    import numpy as np

    from configs import jpeg
    from jpeglm_jax.model.config import model_config
    from jpeglm_jax.model.spec import ModelSpec
    from jpeglm_jax.parallel import sharding
    from jpeglm_jax.parallel.sharding import batch_shardings, cpu_devices
    from jpeglm_jax.training.step import TrainStep, compile_init, compile_train_step

    config = jpeg.get_config()
    sharding.split_cpu(cpu_devices(config))
    mesh = sharding.make_mesh({axis: config.mesh[axis] for axis in sharding.AXES})
    model = model_config(config.model, VOCAB, "cpu")
    train_step = TrainStep(ModelSpec(model), config.optimizer, config.steps, 257)
    rows, length = config.batch_size, config.seq_len
    random = np.random.default_rng(0)
    document = np.arange(length) // DOCUMENT
    batch = {
        "tokens": random.integers(0, 256, (rows, length), np.int32),
        "targets": random.integers(0, 256, (rows, length), np.int32),
        "segments": np.tile(document + 1, (rows, 1)).astype(np.int32),
        "positions": np.tile(np.arange(length) - document * DOCUMENT, (rows, 1)).astype(np.int32),
        "weights": np.ones((rows, length), np.float32),
        "codec_bytes": np.ones((rows, length), np.float32),
    }
    batch = jax.device_put(batch, batch_shardings(mesh))
    state, step = compile_init(train_step, mesh)(0), compile_train_step(train_step, mesh)
    seconds = []
    for _ in range(WARMUP + STEPS):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARMUP:])


def run(command: list[str]) -> float:
    """The last line that a candidate prints, as a number."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{result.stderr[-2000:]}")
    return float(json.loads(result.stdout.splitlines()[-1]))


def peer_shape(config: Any) -> dict[str, Any]:
    """Our shape as a `LlamaConfig` of `transformers`."""
    model = config.model
    return {
        "vocab_size": VOCAB,
        "hidden_size": model.width,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
    }


def main() -> None:
    from configs import jpeg

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    restart_with_large_pages()  # the candidates inherit the setting
    if args.ours:
        print(json.dumps(ours()))
        return
    config = jpeg.get_config()
    rows, length = config.batch_size, config.seq_len
    cores = num_cpus()
    seconds: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        command = [sys.executable, "-m", "benchmarks.train_cpu", "--ours"]
        seconds.setdefault("ours", []).append(run(command))
        for threads in range(1, cores + 1):
            shape = json.dumps([peer_shape(config), rows, length, threads, WARMUP, STEPS])
            command = [args.peer_python, "-c", PEER, shape]
            seconds.setdefault(f"transformers_{threads}_threads", []).append(run(command))
    rates = {name: rows * length / min(found) for name, found in seconds.items()}
    best = max(rate for name, rate in rates.items() if name != "ours")
    result = {
        "command": "python -m benchmarks.train_cpu",
        "machine": f"{platform.machine()}, {cores} cores",
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "ours_over_best_peer": round(rates["ours"] / best, 3),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
