"""The train step of the 7B model on one accelerator, with every kernel, compared with PyTorch's.

    python -m benchmarks.train_step [--only=cudnn] [--skip=peer] [--minutes=9]

A slice of the paper's model that is faithful layer by layer: its width, heads and feed-forward
size, a sequence length of 12,288, bfloat16, and as many of its layers as fit, by the compiler's
count for one and for two. It is the very step that `jpeglm_jax.train` runs. A candidate is an
attention kernel with a remat policy, in a process of its own; the most likely winner comes first.
Before a candidate is timed, its output and gradients are compared with the plain form on two packed
rows of several documents with grouped keys; one that is wrong is reported as wrong, not timed. One
of which no layer fits, or whose kernel is not there, is skipped with the reason. MFU counts causal
attention at half (jpeglm_jax/model/flops.py) and no operation twice.

The peer is `transformers`' LlamaForCausalLM of the same shape and number of layers, compiled, in
bfloat16 autocast with fused AdamW; its attention is plain causal, so it is spared the document
mask. It recomputes activations only if it must to fit. The Python of --peer_python has torch and
transformers (the extra [parity]); by default it is this one, and without them there is no peer.

Writes benchmarks/results/DEVICE.json, after every candidate what is known so far; results of an
earlier call are kept until they are measured again. On a CPU the same code runs on a small shape,
to be seen to work; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import jpeg
from jpeglm_jax.compilation.report import abstract_batch, attention_shape
from jpeglm_jax.hardware import chips
from jpeglm_jax.model import flops
from jpeglm_jax.model.attention import IMPLEMENTATIONS, attention, choose
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding
from jpeglm_jax.parallel.sharding import batch_shardings
from jpeglm_jax.training.step import TrainStep, compile_init, compile_train_step

ROOT = Path(__file__).parents[1]
VOCAB = 320  # the paper's
WARMUP, STEPS = 3, 10
DOCUMENT = 5000  # tokens of a document, about: the paper's
RESERVE = 0.96  # share of JAX's memory that a step may need
TOLERANCE = 0.03  # of the largest entry, in bfloat16
GIB = 2**30

# The most likely winner first. What a platform has no kernel for is not in its list.
CANDIDATES = (
    "cudnn:minimal_with_attention",
    "splash:minimal_with_attention",
    "cudnn:full",
    "splash:full",
    "tokamax:minimal_with_attention",
    "cudnn:save_qkv_attention",
    "splash:save_qkv_attention",
    "tokamax:full",
    "triton:minimal_with_attention",
    "triton:full",
    "chunked:full",
)

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


def train_step_of(config: ConfigDict, platform: str) -> TrainStep:
    model = model_config(config.model, VOCAB, platform)
    return TrainStep(ModelSpec(model), config.optimizer, config.steps, 1)


def packed(length: int, document: int) -> np.ndarray:
    """Segments of one row: documents of `document` tokens, the last cut short by padding."""
    segments = np.arange(length) // document + 1
    segments[-length // 16 :] = 0
    return segments[None].astype(np.int32)


def difference(implementation: str, length: int) -> float:
    """The largest difference to the plain form, over output and gradients, on packed rows.

    As a share of the largest entry of each; two rows of three and of five documents and padding,
    four heads to a group, bfloat16.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    q, direction = (jax.random.normal(key, (2, length, 8, 128), jnp.bfloat16) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, length, 2, 128), jnp.bfloat16) for key in keys[2:])
    segments = jnp.concatenate([packed(length, length // 3), packed(length, length // 5)])
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
    """Bytes that the step of a configuration takes, by its compiler."""
    train_step = train_step_of(config, platform)
    step = compile_train_step(train_step, mesh)
    with jax.set_mesh(mesh):
        lowered = step.jitted.lower(train_step.abstract_state(), abstract_batch(config))  # type: ignore[attr-defined]
    # Without its search for the fastest products, which changes no sizes, this takes seconds.
    options = {"xla_gpu_autotune_level": 0} if platform == "gpu" else None
    memory = lowered.compile(compiler_options=options).memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def layers_that_fit(one: int, two: int, memory: float, total: int = 32) -> int:
    """How many of the paper's layers fit: from the bytes that one and two layers take."""
    return int(max(0, min(total, 1 + (RESERVE * memory - one) // (two - one))))


def measure(implementation: str, remat: str) -> dict[str, Any]:
    """One candidate: compared, then timed; in a process of its own."""
    device = jax.devices()[0]
    platform = device.platform
    mesh = sharding.make_mesh({"fsdp": 1}, devices=[device])
    config = shape_of(platform, 2, remat, implementation)
    model = train_step_of(config, platform).model.config
    shape = attention_shape(model, config.seq_len, device.device_kind)
    try:
        choose(implementation, platform, shape)
    except ValueError as error:
        return {"skipped": str(error)}
    if memory := (device.memory_stats() or {}).get("bytes_limit"):
        one, two = (
            need(shape_of(platform, n, remat, implementation), platform, mesh) for n in (1, 2)
        )
        config.model.layers = layers_that_fit(one, two, memory)
        if not config.model.layers:
            return {
                "skipped": f"one layer needs {one / GIB:.1f} GiB of {memory / GIB:.1f}, by the "
                "compiler's count"
            }
    apart = difference(implementation, 512 if platform == "cpu" else 3072)
    if not apart <= TOLERANCE:
        return {"wrong": f"differs from the plain form by {apart:.3g} of the largest entry"}
    train_step = train_step_of(config, platform)
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
    """Seconds per step -> tokens per second and, where the peak is known, MFU."""
    tokens = config.batch_size * config.seq_len
    operations = flops.train_flops_per_token(train_step.model.config, config.seq_len) * tokens
    peak = flops.peak_flops(jax.devices()[0])
    return {
        "seconds": round(took, 4),
        "tokens_per_second": round(tokens / took),
        "tflops": round(operations / took / 1e12, 2),
        "mfu": round(operations / took / peak, 4) if peak else None,
    }


def peer(
    peer_python: str, layers: int, platform: str, environment: dict[str, str]
) -> dict[str, Any]:
    """The peer at a number of layers; its operations are those of our model."""
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
    result = last_line([peer_python, "-c", PEER, arguments], environment)
    if "seconds" in result:
        tokens = config.batch_size * config.seq_len
        per_token = flops.train_flops_per_token(
            train_step_of(config, platform).model.config, config.seq_len
        )
        result["tokens_per_second"] = round(tokens / result["seconds"])
        result["tflops"] = round(per_token * tokens / result["seconds"] / 1e12, 2)
        result["layers"] = layers
    return result


def last_line(command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The result that a process prints last; or, if it failed, its last message."""
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    if result.returncode == 0:
        return json.loads(result.stdout.splitlines()[-1])
    return {"failed": (result.stderr.strip().splitlines() or ["no message"])[-1][:300]}


def candidates(platform: str, only: str, skip: str) -> list[str]:
    """KERNEL:REMAT of a platform, in order, and "peer".

    Args:
      platform: "cpu", "gpu" or "tpu".
      only, skip: patterns separated by commas, each of a kernel or of KERNEL:REMAT; a remat policy
        that is not in the list is added to it by `only`.
    """
    names = [name for name in CANDIDATES if platform in IMPLEMENTATIONS[name.split(":")[0]]]
    asked = [pattern for pattern in only.split(",") if pattern]
    names += [name for name in asked if re.fullmatch(r"\w+:\w+", name) and name not in names]
    names.append("peer")

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(
            fnmatch.fnmatch(part, pattern)
            for pattern in patterns
            for part in (name, name.split(":")[0])
        )

    skipped = [pattern for pattern in skip.split(",") if pattern]
    return [
        name for name in names if (not asked or matches(name, asked)) and not matches(name, skipped)
    ]


def environment_of(platform: str, cache: str) -> dict[str, str]:
    """Of the candidates: most of a GPU's memory, and compiled programs kept for those after."""
    variables = dict(os.environ)
    if platform == "gpu":
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(chips.MEMORY_FRACTION)
        variables["JAX_COMPILATION_CACHE_DIR"] = cache
        flag = f"--xla_gpu_per_fusion_autotune_cache_dir={cache}"
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {flag}".strip()
    return variables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="candidates: cudnn, cudnn:full, peer, ...")
    parser.add_argument("--skip", default="", help="candidates that are not run")
    parser.add_argument("--minutes", type=float, default=9.0, help="none starts after so many")
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--out", default="", help="default: benchmarks/results/DEVICE.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    began = time.monotonic()
    # The candidates need the whole device, so a process that then ends is asked what it is.
    asked = "import jax, json; d = jax.devices()[0]; print(json.dumps([d.platform, d.device_kind]))"
    printed = subprocess.check_output([sys.executable, "-c", asked], text=True)
    platform, kind = json.loads(printed.splitlines()[-1])
    name = re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")
    out = Path(args.out) if args.out else ROOT / "benchmarks" / "results" / f"{name}.json"
    result = {
        "command": "python -m benchmarks.train_step",
        "device": kind,
        "jax": jax.__version__,
        "formula": flops.FORMULA,
        "ours": {},
    }
    if out.exists():
        before = json.loads(out.read_text())
        if before.get("device") == kind and before.get("jax") == jax.__version__:
            result |= {key: before[key] for key in ("ours", "peer") if key in before}
    with tempfile.TemporaryDirectory() as cache:
        environment = environment_of(platform, cache)
        for candidate in candidates(platform, args.only, args.skip):
            if time.monotonic() - began > 60 * args.minutes:
                print(f"{candidate}: not started, {args.minutes:g} minutes are over", flush=True)
                continue
            if candidate == "peer":
                measured = run_peer(result["ours"], args.peer_python, platform, environment)
                result["peer"] = measured
            else:
                command = [sys.executable, "-m", "benchmarks.train_step", "--one"]
                measured = last_line([*command, *candidate.split(":")], environment)
                result["ours"][candidate] = measured
            print(candidate, measured, flush=True)
            if ratio := over_peer(result):
                result["best_over_peer"] = ratio
            out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")


def best(ours: dict[str, Any]) -> dict[str, Any] | None:
    """The fastest of the candidates that were timed."""
    timed = [values for values in ours.values() if "tflops" in values]
    return max(timed, key=lambda values: values["tflops"], default=None)


def run_peer(
    ours: dict[str, Any], peer_python: str, platform: str, environment: dict[str, str]
) -> dict[str, Any]:
    """The peer with as many layers as our fastest candidate."""
    if first := best(ours):
        return peer(peer_python, first["layers"], platform, environment)
    return {"skipped": "no candidate was timed, so the number of layers is not known"}


def over_peer(result: dict[str, Any]) -> float | None:
    """Operations per second of our fastest candidate over the peer's; None without either."""
    first, other = best(result["ours"]), result.get("peer", {}).get("tflops")
    return round(first["tflops"] / other, 3) if first and other else None


if __name__ == "__main__":
    main()
