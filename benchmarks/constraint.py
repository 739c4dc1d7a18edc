"""The cost of constrained sampling: the time of a step with the constraint and without.

    python -m benchmarks.constraint [--models=quickstart,25m,...] [--rounds=20]

`quickstart` and `25m` are the presets `digits` and `cifar10` of `configs/jpeg.py`; `clips` is the
default of `configs/avc.py` with one slice per frame, `clips_of_bytes` the same with one token per
byte, `clips_by_macroblock` that with one slice per macroblock. The engine of `jpeglm_jax.generate`
with random weights and 64 rows; a tokenizer that the preset trains is trained here on fewer
documents. Each round measures the 64 steps of one call of the engine's compiled loop, from new rows
on, with the constraint and without; the result is the min over the rounds. On a CPU there is one
device per core. The time to make the constraint's tables and their size are measured in the same
process.
Writes `benchmarks/results/constraint_DEVICE.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import avc, jpeg
from data_pipelines import representations
from data_pipelines.representations.base import Representation
from data_pipelines.sources import open_source
from data_pipelines.utils.cpus import num_cpus
from jpeglm_jax.generation.constraint import Constraint, make_constraint
from jpeglm_jax.generation.engine import MAX_STEPS, Engine
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.parallel import sharding

RESULTS = Path(__file__).parent / "results"
ROWS = 64
TOKENIZER_DOCUMENTS = 1000


def _clips_of_bytes() -> ConfigDict:
    config = avc.get_config("tiny")
    config.representation.places, config.data.train_tokenizer.vocab_size = False, 0
    return config


def _clips_by_macroblock() -> ConfigDict:
    config = _clips_of_bytes()
    config.representation.slice_mbs = 1
    config.seq_len = 512  # a slice header for each macroblock
    return config


MODELS: dict[str, Callable[[], ConfigDict]] = {
    "quickstart": lambda: jpeg.get_config("digits"),
    "25m": lambda: jpeg.get_config("cifar10"),
    "clips": lambda: avc.get_config("tiny"),
    "clips_of_bytes": _clips_of_bytes,
    "clips_by_macroblock": _clips_by_macroblock,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    sharding.split_cpu(num_cpus())
    device = jax.devices()[0]
    name = "cpu" if device.platform == "cpu" else device.device_kind.lower().replace(" ", "-")
    path = RESULTS / f"constraint_{name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results |= {
        "command": "python -m benchmarks.constraint",
        "machine": f"{device.device_kind}, {platform.machine()}, {num_cpus()} cores, "
        f"Python {platform.python_version()}, jax {jax.__version__}",
        "rows": ROWS,
    }
    for model in args.models.split(","):
        results[model] = {"rounds": args.rounds} | measure(MODELS[model](), args.rounds)
    text = json.dumps(results, indent=2)
    path.write_text(text + "\n")
    print(text)


def measure(config: ConfigDict, rounds: int) -> dict[str, float]:
    """Milliseconds per step with the constraint and without, and time and size of the tables."""
    representation = _representation(config)
    began = time.perf_counter()
    rules = make_constraint(representation)
    table_seconds = time.perf_counter() - began

    mesh = sharding.make_mesh({"replica": -1, "fsdp": 1})
    model = model_config(config.model, representation.vocab_size, jax.devices()[0].platform)
    spec = ModelSpec(model)
    params = spec.init_on(mesh, 0)
    candidates = {
        name: _Steps(spec, mesh, params, representation, config.seq_len, chosen)
        for name, chosen in (("unconstrained", None), ("constrained", rules))
    }
    for steps in candidates.values():
        steps()  # compiles
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, steps in candidates.items():
            times[name].append(steps())
    unconstrained, constrained = (
        1e3 * min(times[name]) for name in ("unconstrained", "constrained")
    )
    return {
        "unconstrained_milliseconds_per_step": round(unconstrained, 3),
        "constrained_milliseconds_per_step": round(constrained, 3),
        "cost_percent": round(100 * (constrained / unconstrained - 1), 1),
        "table_seconds": round(table_seconds, 2),
        "table_megabytes": round(
            sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(rules)) / 1e6, 1
        ),
    }


def _representation(config: ConfigDict) -> Representation:
    """The representation of a preset, with its tokenizer trained on some documents."""
    options = config.representation.to_dict()
    options["num_labels"] = 10 if config.data.conditional else 0
    made: Any = representations.make(**options)
    trained = config.data.train_tokenizer
    if not trained.vocab_size:
        return made
    source = open_source(config.data.source, made.kind)
    streams = []
    for item in itertools.islice(source.items(), TOKENIZER_DOCUMENTS):
        medium = next(iter(made.open(source.read(item.locator))))
        streams.append(made.tokenizer.decode(made.encode(medium)))
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(made.train_tokenizer(streams, trained.vocab_size, trained.kind))
        file.flush()
        return representations.make(**options | {"tokenizer": file.name})


class _Steps:
    """Measures the seconds per step of one call of the engine's compiled loop on new rows."""

    def __init__(
        self,
        spec: ModelSpec,
        mesh: Any,
        params: Any,
        representation: Representation,
        seq_len: int,
        rules: Constraint | None,
    ):
        self._engine = Engine(
            spec,
            mesh,
            SamplingParams(),
            batch_size=ROWS,
            seq_len=seq_len,
            seed=0,
            eos=representation.eos,
            constraint=rules,
        )
        self._weights = self._engine.prepare_weights(params)
        start = np.array([representation.bos])
        self._entry = self._engine.make_entry({row: (row, start) for row in range(ROWS)})

    def __call__(self) -> float:
        engine = self._engine
        state = engine.insert(engine.empty_state(), self._entry)
        jax.block_until_ready(state)
        began = time.perf_counter()
        state, _ = engine.decode(self._weights, engine.rules, state, np.int32(ROWS))
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
        # The loop makes all of its steps unless every document has ended before.
        assert int(np.max(state.position)) == MAX_STEPS
        return seconds / MAX_STEPS


if __name__ == "__main__":
    main()
