"""Speed of sampling compared with `transformers`' `generate` in PyTorch: same weights and batch.

    python -m benchmarks.generation [--peer_python=PYTHON] [--models=quickstart,25m] [--rounds=3]

Random weights are written as a Hugging Face checkpoint and read by both: by ours after
`jpeglm_jax.convert`. Each job samples a full sequence for every row from its start token, at
temperature 1 without filters. No token ends a row, so that both do the same work: ours could admit
other documents, the peer waits for its longest. Ours is the engine of `jpeglm_jax.generate`, on a
CPU with one device per core and with one device of many threads. The peer uses a growing cache (the
default) or one of fixed size, at every number of threads up to the cores. Each candidate is a
process of its own. All of them run in turn for several rounds; the best round of each counts.
Greedy tokens of both are compared first.

On a GPU both run there, in bfloat16 with 64 rows, and ours also reports its share of the memory
bandwidth: the bytes to read per step (weights, and the filled positions of the cache) divided by
time and by the bandwidth of a large copy in the same process. Writes
`benchmarks/results/generation_DEVICE.json`, again after every job. A candidate that fails is
reported, and the others run without it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.utils.cpus import num_cpus

ROOT = Path(__file__).parents[1]
ROWS = {"cpu": 32, "gpu": 64}
VOCAB = 268  # bytes, BOS, EOS, ten labels

# name -> (shape, context)
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    # the model of configs/jpeg.py:digits, on bytes
    "quickstart": (dict(layers=4, width=128, heads=4, kv_heads=4, head_dim=32, ffn=384), 120),
    "25m": (dict(layers=8, width=512, heads=8, kv_heads=8, head_dim=64, ffn=1408), 257),
    "1b": (dict(layers=16, width=2048, heads=32, kv_heads=32, head_dim=64, ffn=8192), 1025),
}

PEER = """
import json, sys, time
import torch
import transformers

folder, rows, length, threads, cache, rounds, greedy = json.loads(sys.argv[1])
torch.set_num_threads(threads)
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16 if device == "cuda" else torch.float32
model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
start = torch.full((rows, 1), 256, device=device)
options = dict(max_new_tokens=length - 1, eos_token_id=None, pad_token_id=0)
options |= dict(attention_mask=torch.ones_like(start))
if cache != "growing":
    options |= dict(cache_implementation=cache)
how = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
how = transformers.GenerationConfig(**(dict(do_sample=False) if greedy else how))

def sample():
    with torch.inference_mode():
        tokens = model.generate(start, generation_config=how, **options)
    if device == "cuda":
        torch.cuda.synchronize()
    assert tokens.shape == (rows, length)
    return tokens[0].tolist()

first = sample()
seconds = []
for _ in range(rounds):
    began = time.perf_counter()
    sample()
    seconds.append(time.perf_counter() - began)
print(json.dumps({"seconds": min(seconds), "tokens": first}))
"""


def make_checkpoint(folder: Path, name: str) -> None:
    """A Hugging Face checkpoint of random weights in FOLDER/original, converted to FOLDER/run."""
    import numpy as np
    from etils import epath

    from configs import jpeg
    from data_pipelines import representations
    from jpeglm_jax.convert import from_hf
    from jpeglm_jax.huggingface import config, safetensors, weights
    from jpeglm_jax.model.config import ModelConfig

    shape, length = MODELS[name]
    model = ModelConfig(vocab_size=VOCAB, **shape)
    original = folder / "original"
    original.mkdir()
    rng = np.random.default_rng(0)
    names = [(name, w.tensor_shape) for w in weights.table(model) for name in w.names]

    def tensors() -> Any:
        for _, shape in names:
            scale = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
            yield (scale * rng.standard_normal(shape, np.float32)).astype(np.float32)

    shards = safetensors.plan(names, "float32", 4_000_000_000)
    safetensors.write(epath.Path(original), shards, "float32", tensors())
    config_json = config.to_json(model, seq_len=length, bos=256, eos=257, dtype="float32")
    (original / "config.json").write_text(config_json)
    representations.make("jpeg", size=16, num_labels=10).save(original)
    from_hf(original, folder / "run", jpeg.get_config())


def ours(folder: Path, length: int, devices: int, rounds: int, greedy: bool) -> dict[str, Any]:
    """Min seconds of a job over the rounds; in a process of its own."""
    import jax
    import numpy as np

    from jpeglm_jax.generation.engine import Engine
    from jpeglm_jax.generation.sampling import SamplingParams
    from jpeglm_jax.parallel import sharding
    from jpeglm_jax.training import checkpoint

    sharding.split_cpu(devices)
    checkpoint.quiet_libraries()
    model = checkpoint.load(folder / "run")
    rows = ROWS[jax.default_backend()]
    engine = Engine(
        model.spec,
        model.mesh,
        SamplingParams(temperature=0.0 if greedy else 1.0),
        batch_size=rows,
        seq_len=length,
        seed=0,
        eos=-1,  # no token ends a document
    )
    prompts = [np.array([model.representation.bos])] * rows

    def sample() -> list[int]:
        samples = list(engine(model.params, prompts))
        assert [len(sample.tokens) for sample in samples] == [length - 1] * rows
        return [model.representation.bos, *samples[0].tokens.tolist()]

    first, seconds = sample(), []
    for _ in range(rounds):
        began = time.perf_counter()
        sample()
        seconds.append(time.perf_counter() - began)
    found: dict[str, Any] = {"seconds": min(seconds), "tokens": first}
    if jax.default_backend() == "gpu":
        c = model.spec.config
        weights = sum(x.size for x in jax.tree.leaves(model.params)) - c.vocab_size * c.width
        cache = 2 * c.layers * rows * c.kv_heads * c.head_dim * (length - 1) / 2
        needed = jax.numpy.dtype(c.dtype).itemsize * (weights + cache) * (length - 1)
        found["device"] = jax.devices()[0].device_kind
        found["bandwidth_share"] = needed / min(seconds) / copy_bandwidth()
    return found


def copy_bandwidth() -> float:
    """Bytes per second that a copy of a gigabyte reads and writes."""
    import jax

    copy = jax.jit(lambda x: x + 1)
    x = jax.block_until_ready(copy(jax.numpy.zeros(1 << 28, "float32")))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(copy(x))
        seconds.append(time.perf_counter() - began)
    return 2 * x.nbytes / min(seconds)


def run(command: list[str]) -> dict[str, Any]:
    """The last line that a candidate prints, as JSON; or, if it failed, its last message."""
    print("running", command[-1], file=sys.stderr, flush=True)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        return {"failed": (result.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return json.loads(result.stdout.splitlines()[-1])


def is_chosen(name: str, only: str, skip: str) -> bool:
    """Whether a candidate is run: patterns separated by commas, `only` empty for all."""

    def matches(patterns: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(","))

    return (not only or matches(only)) and not (skip and matches(skip))


def compare(
    folder: Path,
    name: str,
    args: argparse.Namespace,
    gpu: bool,
    write: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Tokens per second of every candidate with one model.

    Args:
      folder: of the checkpoints.
      name: of the model.
      args: of the command.
      gpu: whether the candidates run on a GPU.
      write: called with what is known after every job.
    """
    length, cores = args.length or MODELS[name][1], num_cpus()
    rows = ROWS["gpu" if gpu else "cpu"]
    commands = {}
    for devices in (1,) if gpu or cores == 1 else (cores, 1):
        key = "ours" if devices == cores or gpu else "ours_one_device"
        commands[key] = [
            *(sys.executable, "-m", "benchmarks.generation", "--ours"),
            json.dumps([str(folder), length, devices, args.repeats]),
        ]
    for threads in (1,) if gpu else range(1, cores + 1):
        for cache in ("growing", "static"):
            values = [str(folder / "original"), rows, length, threads, cache, args.repeats]
            key = f"transformers_{cache}" + ("" if gpu else f"_{threads}_threads")
            commands[key] = [args.peer_python, "-c", PEER, json.dumps(values)]

    commands = {key: c for key, c in commands.items() if is_chosen(key, args.only, args.skip)}
    result: dict[str, Any] = {"rows": rows, "tokens_per_row": length - 1, "tokens_per_second": {}}

    def greedy(command: list[str]) -> list[int] | None:
        found = run([*command[:-1], json.dumps([*json.loads(command[-1]), True])])
        return found.get("tokens")

    peers = [key for key in commands if key.startswith("transformers")]
    if "ours" in commands and peers:
        theirs, ours = greedy(commands[peers[0]]), greedy(commands["ours"])
        if theirs and ours:
            same = [a == b for a, b in zip(ours, theirs, strict=True)]
            result["greedy_tokens_equal_up_to"] = same.index(False) if False in same else length
    seconds: dict[str, float] = {}
    for _ in range(args.rounds):
        for key, command in commands.items():
            found = run([*command[:-1], json.dumps([*json.loads(command[-1]), False])])
            if "failed" in found:
                result.setdefault("failed", {})[key] = found["failed"]
                write(result)
                continue
            seconds[key] = min(seconds.get(key, math.inf), found["seconds"])
            result |= {name: found[name] for name in ("device", "bandwidth_share") if name in found}
            rates = {key: rows * (length - 1) / best for key, best in seconds.items()}
            result["tokens_per_second"] = {key: round(rate) for key, rate in rates.items()}
            best_ours = max((r for key, r in rates.items() if key.startswith("ours")), default=0)
            best_peer = max((r for key, r in rates.items() if key in peers), default=0)
            if best_ours and best_peer:
                result["ours_over_best_peer"] = round(best_ours / best_peer, 3)
            write(result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--models", default="quickstart,25m", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--only", default="", help="candidates: ours*, transformers_static, ...")
    parser.add_argument("--skip", default="", help="candidates that are not run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="jobs per process")
    parser.add_argument("--length", type=int, default=0, help="quick run, writes no results")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        folder, *values = json.loads(args.ours)
        print(json.dumps(ours(Path(folder), *values)))
        return
    gpu = shutil.which("nvidia-smi") is not None
    models: dict[str, dict[str, Any]] = {}
    for name in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(Path(folder), name)

            def write(found: dict[str, Any], name: str = name) -> None:
                if not args.length:
                    save(models | {name: found}, gpu)

            models[name] = compare(Path(folder), name, args, gpu, write)
    print(json.dumps(models, indent=2))


def save(models: dict[str, dict[str, Any]], gpu: bool) -> None:
    """Writes the results of models; those of other models, of an earlier run, are kept."""
    cores = num_cpus()
    device = next((m["device"] for m in models.values() if "device" in m), "cpu")
    name = device.replace(" ", "_").lower()
    path = ROOT / "benchmarks" / "results" / f"generation_{name}.json"
    kept = json.loads(path.read_text())["models"] if path.exists() else {}
    result = {
        "command": "python -m benchmarks.generation",
        "machine": device if gpu else f"{platform.machine()}, {cores} cores",
        "models": kept | models,
    }
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
