"""The train step of the 7B model on one accelerator, with every attention, beside PyTorch's.

    python -m benchmarks.train_step [--peer_python=PYTHON] [--remat=full,save_qkv_attention]

A slice of the paper's model that is faithful layer by layer: its width, heads and feed-forward
size, rows of 12,288 places, bfloat16, and as many of its layers as fit (found by compiling two
depths and drawing the line). It is the very step that `jpeglm_jax.train` runs. Every attention the
platform has, with every remat policy asked for, is a process of its own; before it is timed its
output and gradients are held against the plain form on packed rows, and one that is wrong is
written down as wrong, not timed. MFU counts causal attention at half (jpeglm_jax/flops.py) and no
operation twice.

The peer is `transformers`' LlamaForCausalLM of the same shape and number of layers, compiled, in
bfloat16 autocast with fused AdamW; its attention is plain causal, so it is spared the document
mask. It recomputes activations only if it must to fit. PYTHON has torch and transformers (the extra
[parity]); by default it is this one, and where they are missing there is no peer.

Writes benchmarks/results/DEVICE.json. On a CPU the same code runs on a small shape, to be seen to
work; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import jpeg
from jpeglm_jax.compile import abstract_batch
from jpeglm_jax.model import flops
from jpeglm_jax.model.attention import IMPLEMENTATIONS, attention
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.sharding import batch_shardings
from jpeglm_jax.training.step import TrainStep, compile_init, compile_train_step

ROOT = Path(__file__).parents[1]
VOCAB = 320  # the paper's
WARMUP, STEPS = 3, 10
DOCUMENT = 5000  # places of a document, about: the paper's
RESERVE = 0.94  # share of the memory that a step may need: the rest is for what XLA sets aside
TOLERANCE = 0.03  # of the largest entry, in bfloat16

PEER = """
import json, statistics, sys, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM

shape, rows, length, warmup, steps = json.loads(sys.argv[1])
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
torch.set_float32_matmul_precision("high")


def seconds(checkpointing):
    config = LlamaConfig(**shape, max_position_embeddings=length, attn_implementation="sdpa")
    with torch.device(device):
        model = LlamaForCausalLM(config)
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), fused=True)
    forward = torch.compile(model)
    tokens = torch.randint(0, 256, (rows, length), device=device)
    targets = torch.randint(0, 256, (rows, length), device=device)
    found = []
    for _ in range(warmup + steps):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            logits = forward(tokens, use_cache=False).logits
        logits = logits.float().flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[warmup:])


try:
    took, checkpointing = seconds(False), False
except torch.OutOfMemoryError:
    took = None
if took is None:  # outside of the handler, which would keep the first model alive
    torch.cuda.empty_cache()
    took, checkpointing = seconds(True), True
print(json.dumps({"seconds": took, "checkpointing": checkpointing, "torch": torch.__version__}))
"""


def shape_of(platform: str, layers: int, remat: str, implementation: str) -> ConfigDict:
    """The configuration that is measured: the paper's slice; on a CPU a small shape."""
    config = jpeg.get_config("7b")
    config.batch_size = 1
    config.model.update(layers=layers, remat=remat, attention=implementation)
    if platform == "cpu":
        config.seq_len = 256
        config.model.update(width=64, heads=4, kv_heads=4, head_dim=16, ffn=176, dtype="bfloat16")
    return config


def recipe_of(config: ConfigDict, platform: str) -> TrainStep:
    model = model_config(config.model, VOCAB, platform)
    return TrainStep(ModelSpec(model), config.optimizer, config.steps, 1)


def packed(length: int, document: int) -> np.ndarray:
    """Segments of one row: documents of `document` places, the last cut short by padding."""
    segments = np.arange(length) // document + 1
    segments[-length // 16 :] = 0
    return segments[None].astype(np.int32)


def difference(implementation: str, length: int) -> float:
    """The largest difference to the plain form, over output and gradients, on a packed row.

    As a share of the largest entry of each; grouped-query, bfloat16.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    q, direction = (jax.random.normal(key, (1, length, 8, 128), jnp.bfloat16) for key in keys[:2])
    k, v = (jax.random.normal(key, (1, length, 2, 128), jnp.bfloat16) for key in keys[2:])
    segments = jnp.asarray(packed(length, length // 3))
    looks = (segments > 0)[..., None, None]

    def results(name: str) -> Any:
        def loss(q, k, v):
            out = attention(q, k, v, segments, implementation=name) * looks
            return jnp.sum((out * direction).astype(jnp.float32)), out

        gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    pairs = zip(results(implementation), results("xla"), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def need(config: ConfigDict, platform: str, mesh: Any) -> int:
    """Bytes that the step of a configuration takes."""
    train_step = recipe_of(config, platform)
    step = compile_train_step(train_step, mesh)
    with jax.set_mesh(mesh):
        lowered = step.jitted.lower(train_step.abstract_state(), abstract_batch(config))  # type: ignore[attr-defined]
    memory = lowered.compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def layers_that_fit(remat: str, implementation: str, platform: str, mesh: Any) -> int:
    """How many layers of the paper's 32 one device takes."""
    memory = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
    if memory is None:
        return 2
    one, two = (need(shape_of(platform, n, remat, implementation), platform, mesh) for n in (1, 2))
    return int(max(1, min(32, 1 + (RESERVE * memory - one) // (two - one))))


def measure(implementation: str, remat: str) -> dict[str, Any]:
    """One candidate: checked, then timed; in a process of its own."""
    device = jax.devices()[0]
    platform = device.platform
    mesh = sharding.make_mesh({"fsdp": 1}, devices=[device])
    apart = difference(implementation, 512 if platform == "cpu" else 3072)
    if not apart <= TOLERANCE:
        return {"wrong": f"differs from the plain form by {apart:.3g} of the largest entry"}
    config = shape_of(platform, 2, remat, implementation)
    config.model.layers = layers_that_fit(remat, implementation, platform, mesh)
    train_step = recipe_of(config, platform)
    random = np.random.default_rng(0)
    rows, length = config.batch_size, config.seq_len
    segments = packed(length, min(DOCUMENT, length // 2))
    starts = np.maximum.accumulate(
        np.where(np.diff(segments, prepend=0) != 0, np.arange(length), 0), axis=1
    )
    batch = {
        "tokens": random.integers(0, 256, (rows, length), np.int32),
        "targets": random.integers(0, 256, (rows, length), np.int32),
        "segments": segments,
        "positions": (np.arange(length) - starts).astype(np.int32),
        "weights": (segments > 0).astype(np.float32),
        "codec_bytes": (segments > 0).astype(np.float32),
    }
    batch = jax.device_put(batch, batch_shardings(mesh))
    state, step = compile_init(train_step, mesh)(0), compile_train_step(train_step, mesh)
    found = []
    for _ in range(WARMUP + STEPS):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        finite = float(metrics["finite"])
        found.append(time.perf_counter() - began)
        if not finite:
            return {"wrong": "the loss or a gradient is not finite"}
    took = statistics.median(found[WARMUP:])
    return rates(config, train_step, took) | {"layers": config.model.layers, "difference": apart}


def rates(config: ConfigDict, train_step: TrainStep, took: float) -> dict[str, Any]:
    """Seconds a step -> tokens a second and, where the peak is known, MFU."""
    tokens = config.batch_size * config.seq_len
    operations = flops.train_flops_per_token(train_step.model.config, config.seq_len) * tokens
    peak = flops.peak_flops(jax.devices()[0])
    return {
        "seconds": round(took, 4),
        "tokens_per_second": round(tokens / took),
        "tflops": round(operations / took / 1e12, 2),
        "mfu": round(operations / took / peak, 4) if peak else None,
    }


def beside(peer_python: str, layers: int, platform: str) -> dict[str, Any]:
    """The peer at a number of layers."""
    config = shape_of(platform, layers, "full", "auto")
    model = config.model
    shape = dict(
        vocab_size=VOCAB,
        hidden_size=model.width,
        intermediate_size=model.ffn,
        num_hidden_layers=layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
    )
    arguments = json.dumps([shape, config.batch_size, config.seq_len, WARMUP, STEPS])
    result = last_line([peer_python, "-c", PEER, arguments])
    if "seconds" not in result:
        return result
    return result | rates(config, recipe_of(config, platform), result["seconds"])


def last_line(command: list[str]) -> dict[str, Any]:
    """What a candidate prints last; or, if it could not run, why."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return json.loads(result.stdout.splitlines()[-1])
    return {"failed": (result.stderr.strip().splitlines() or ["no word"])[-1][:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--remat", default="full,save_qkv_attention,minimal_with_attention")
    parser.add_argument("--out", default="", help="default: benchmarks/results/DEVICE.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    # The candidates need the whole device: what it is, is asked in a process that then ends.
    asked = "import jax, json; d = jax.devices()[0]; print(json.dumps([d.platform, d.device_kind]))"
    printed = subprocess.check_output([sys.executable, "-c", asked], text=True)
    platform, kind = json.loads(printed.splitlines()[-1])
    candidates = [name for name, runs_on in IMPLEMENTATIONS.items() if platform in runs_on]
    result: dict[str, Any] = {
        "command": "python -m benchmarks.train_step",
        "device": kind,
        "jax": jax.__version__,
        "formula": flops.FORMULA,
        "ours": {},
    }
    for name in candidates:
        for remat in args.remat.split(","):
            command = [sys.executable, "-m", "benchmarks.train_step", "--one", name, remat]
            result["ours"][f"{name} {remat}"] = last_line(command)
            print(name, remat, result["ours"][f"{name} {remat}"], flush=True)
    timed = [values for values in result["ours"].values() if "seconds" in values]
    if timed:
        best = max(timed, key=lambda values: values["tflops"])
        result["peer"] = beside(args.peer_python, best["layers"], platform)
        print("peer", result["peer"])
        if "tflops" in result["peer"]:
            result["best_over_peer"] = round(best["tflops"] / result["peer"]["tflops"], 3)
    name = re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")
    out = Path(args.out) if args.out else ROOT / "benchmarks" / "results" / f"{name}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
