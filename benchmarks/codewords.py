"""Tokens of code words compared with bytes and BPE: tokens per image, time, sampling, constraint.

    python -m benchmarks.codewords [--photos=FOLDER] [--count=10000] [--parts=tokens,time,...]

Tokens: the tokenizers are trained on random square crops of half of the photos, at 256x256, quality
25, 4:2:0, one MCU per restart, tables stripped, and counted on the centre squares of the other
half, at 256x256 and at 32x32 (trained at 32x32): the mean, and the 99th percentile. Time: one image
at a time, decoded from a 1,024x1024 JPEG file, resized and encoded, as preparation does it; CPU
time, the best of the rounds. The files are made of the photos, each enlarged, or of four of them
side by side (`detailed`). Sampling: images per second of 64 rows of the mean length at 32x32, from
an untrained model of 4 layers of width 128 that never ends a document; the best of the rounds.
Constraint: what `allowed` and `advance` add to a step that chooses the best token for 64 rows, at
256x256. Writes `benchmarks/results/codewords.json`.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from PIL import Image

from benchmarks.tokenizer import PHOTOS, SUFFIXES, random_square
from data_pipelines.media import images
from data_pipelines.representations import make
from data_pipelines.representations.base import Representation
from data_pipelines.representations.codewords import compiled
from data_pipelines.utils.cpus import num_cpus
from jpeglm_jax.generation.constraint import make_constraint
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.config import ModelConfig
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding

RESULTS = Path(__file__).parent / "results" / "codewords.json"
_MERGES = "data_pipelines.representations.codewords.merges"
ROWS = 64
ROUNDS = 5
STEPS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="searched with subfolders")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--parts", default="tokens,time,sampling,constraint")
    args = parser.parse_args()
    photos = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not photos:
        parser.error(f"no photo with a suffix in {sorted(SUFFIXES)} under {args.photos}")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= {
        "command": f"python -m benchmarks.codewords --count={args.count}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, sentencepiece {sentencepiece.__version__}, "
        f"numpy {np.__version__}, jax {jax.__version__}",
    }
    with tempfile.TemporaryDirectory() as folder:
        trained = train(photos[1::2], args.count, 256, Path(folder), results)
        small = train(photos[1::2], args.count, 32, Path(folder), {})
        for part in args.parts.split(","):
            if part == "tokens":
                results[part] = {"256": tokens(trained, photos[0::2])}
                results[part]["32"] = tokens(small, photos[0::2])
            elif part == "sampling":
                results[part] = sampling_rates(small, results["tokens"]["32"])
            elif part == "time":
                results[part] = {
                    "enlarged": prepare_times(trained, enlarged(photos[0::6])),
                    "detailed": prepare_times(trained, detailed(photos[0::2])),
                }
            else:
                results[part] = constraint_times(trained)
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def train(
    photos: list[Path], count: int, size: int, folder: Path, results: dict[str, Any]
) -> dict[str, Representation]:
    """Representations by the name of their tokenizer, those with models trained on crops."""
    bare = make("jpeg", size=size)
    rng = np.random.default_rng(0)
    documents = []
    for index, path in enumerate(photos):
        with Image.open(path) as file:
            photo = file.convert("RGB")
        copies = count * (index + 1) // len(photos) - count * index // len(photos)
        for _ in range(copies):
            crop = random_square(photo, rng)
            documents.append(bare.tokenizer.decode(bare.encode(crop)))  # type: ignore[attr-defined]
    found = {"bytes": bare, "codewords": make("jpeg", size=size, tokenizer="codewords")}
    seconds = {}
    for kind, entries in (("bpe", 320), ("codewords", 2048), ("codewords", 4096)):
        name = f"{kind} {entries}"
        begin = time.perf_counter()
        model = bare.train_tokenizer(documents, entries, kind)  # type: ignore[attr-defined]
        seconds[name] = time.perf_counter() - begin
        path = folder / f"{size} {name}.model"
        path.write_bytes(model)
        found[name] = make("jpeg", size=size, tokenizer=str(path))
    results["train_seconds"] = {"documents": count, **seconds}
    return found


def tokens(trained: dict[str, Representation], photos: list[Path]) -> dict[str, dict[str, float]]:
    """Tokens per image by tokenizer: the mean and the 99th percentile."""
    pictures = [Image.open(path).convert("RGB") for path in photos]
    found = {}
    for name, representation in trained.items():
        lengths = [len(representation.encode(picture)) for picture in pictures]
        found[name] = {"mean": float(np.mean(lengths)), "p99": float(np.percentile(lengths, 99))}
    return found


def sampling_rates(
    trained: dict[str, Representation], lengths: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Images per second by tokenizer, of documents that all have the mean length."""
    sharding.split_cpu(num_cpus())
    mesh = sharding.make_mesh({"replica": -1})
    found = {}
    for name, representation in trained.items():
        shape: Any = dict(layers=4, width=128, heads=4, kv_heads=4, head_dim=32, ffn=384)
        spec = ModelSpec(
            ModelConfig(vocab_size=representation.vocab_size, dtype="float32", **shape)
        )
        engine = Engine(
            spec,
            mesh,
            SamplingParams(),
            batch_size=ROWS,
            seq_len=round(lengths[name]["mean"]) + 1,
            seed=0,
            eos=-1,  # no token ends a document
        )
        params = spec.init_on(mesh, 0)
        prompts = [np.array([representation.bos], np.int32)] * ROWS

        def run(engine=engine, params=params, prompts=prompts) -> list[Any]:  # type: ignore
            return list(engine(params, prompts, range(ROWS)))

        run()  # compiles
        found[name] = ROWS / min(timed(run) for _ in range(ROUNDS))
    return found


def enlarged(photos: list[Path]) -> list[bytes]:
    """The centre squares as JPEG files of 1,024x1024 pixels; soft, so cheap to decode."""
    return [_file(_square(path).resize((1024, 1024), Image.Resampling.LANCZOS)) for path in photos]


def detailed(photos: list[Path]) -> list[bytes]:
    """Four photos side by side, as many pixels as 1,024x1024 with the detail of real ones."""
    files = []
    for first in range(0, len(photos) - 3, 4):
        sheet = Image.new("RGB", (1024, 1024))
        for index, path in enumerate(photos[first : first + 4]):
            tile = _square(path).resize((512, 512), Image.Resampling.LANCZOS)
            sheet.paste(tile, (index % 2 * 512, index // 2 * 512))
        files.append(_file(sheet))
    return files


def _square(path: Path) -> Image.Image:
    with Image.open(path) as file:
        image = file.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _file(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def prepare_times(trained: dict[str, Representation], files: list[bytes]) -> dict[str, Any]:
    """Milliseconds per image by tokenizer, and how much more than with bytes."""
    has_numba = compiled.module(_MERGES) is not None
    candidates: list[tuple[str, str, Any]] = [(name, name, compiled.module) for name in trained]
    if has_numba:
        words = [name for name in trained if name.startswith("codewords")]
        candidates += [(f"{name}, without numba", name, lambda _: None) for name in words]
    best = {label: float("inf") for label, _, _ in candidates}
    for _ in range(ROUNDS):
        for label, name, module in candidates:
            with mock.patch.object(compiled, "module", module):
                begin = time.process_time()
                for file in files:
                    trained[name].encode(images.open_image(file))
                best[label] = min(best[label], (time.process_time() - begin) / len(files) * 1e3)
    return {
        "images": len(files),
        "compiled": has_numba,
        "bytes_per_file": float(np.mean([len(file) for file in files])),
        "ms_per_image": best,
        "more_than_bytes": {name: ms / best["bytes"] - 1 for name, ms in best.items()},
    }


def constraint_times(trained: dict[str, Representation]) -> dict[str, Any]:
    """Milliseconds that a step takes more by tokenizer, and megabytes and seconds of the tables."""
    found = {}
    for name, representation in trained.items():
        begin = time.perf_counter()
        rules = make_constraint(representation)
        seconds = time.perf_counter() - begin
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(rules))
        step, free = _steps(rules), _free_steps()
        start = rules.start([np.array([representation.bos])] * ROWS)
        logits = jax.random.normal(jax.random.key(0), (ROWS, representation.vocab_size))
        best, without = [
            min(timed(run) for _ in range(ROUNDS + 1)) / STEPS * 1e3
            for run in (
                functools.partial(step, rules, start, logits),
                functools.partial(free, logits),
            )
        ]
        found[name] = {
            "ms_per_step": best - without,
            "ms_per_step_without": without,
            "table_seconds": seconds,
            "table_megabytes": size / 1e6,
        }
    return found


def _steps(rules: Any) -> Callable[..., Any]:
    """Some steps in one program: the best allowed token of the same logits, rolled each time."""

    @jax.jit
    def run(rules: Any, state: Any, logits: jax.Array) -> Any:
        def one(position: jax.Array, state: Any) -> Any:
            allowed = rules.allowed(state, jnp.full(ROWS, 100_000))
            rolled = jnp.roll(logits, position, axis=0)
            return rules.advance(state, jnp.argmax(jnp.where(allowed, rolled, -jnp.inf), axis=1))

        return jax.lax.fori_loop(0, STEPS, one, state)

    return run


def _free_steps() -> Callable[[jax.Array], jax.Array]:
    """The same steps without a constraint."""

    @jax.jit
    def run(logits: jax.Array) -> jax.Array:
        def one(position: jax.Array, tokens: jax.Array) -> jax.Array:
            rolled = jnp.roll(logits, position, axis=0)
            known = tokens[:, None] >= 0  # always; so that no step can be left out
            return jnp.argmax(jnp.where(known, rolled, -jnp.inf), axis=1)

        return jax.lax.fori_loop(0, STEPS, one, jnp.zeros(ROWS, jnp.int32))

    return run


def timed(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
