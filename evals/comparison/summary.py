"""The result of a comparison: a line for each candidate, model and budget, over all its seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from evals.comparison import plan
from evals.comparison.stages import Stages
from evals.reporting import numbers
from evals.reporting.results import make_result
from jpeglm_jax.training import checkpoint

# Of a run's samples, as `evals.evaluation` names them.
_DISTANCES = (
    "fid",
    "frechet_distance",
    "kid",
    "kernel_distance",
    "precision",
    "recall",
    "density",
    "coverage",
)
_OF_TRAINING = ("steps", "images_seen", "train_flops", "learning_rate", "parameters")
_OF_SAMPLES = ("valid", "recognised", "images_per_second")


def summarise(
    config: ConfigDict, stages: Stages, settings: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """The contents of compare.json, from the results of finished stages.

    Args:
      config: of the comparison.
      stages: all finished.
      settings: all that decides it, flat.
      command: that gives the result again.
    """
    runs = plan.runs(config)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in runs:
        key = (run.candidate, run.model, run.budget)
        groups.setdefault(key, []).append(_of_run(stages, run))
    lines = [
        {
            "candidate": candidate,
            "model": model,
            "budget": budget,
            "seeds": len(found),
            "samples": stages.grid(plan.Run(candidate, model, budget, config.seed)),
            **_over_seeds(found),
        }
        for (candidate, model, budget), found in groups.items()
    ]
    last = [run for run in runs if stages.completes(run)]
    figures = {
        "completion": {
            run.candidate: {
                "folder": stages.completed(run),
                "table": stages.complete(run)["table"],
            }
            for run in last
        },
        "small_elements": {
            name: {
                "folder": stages.completed_small(name),
                "table": stages.small_elements(name)["table"],
            }
            for name in config.small_elements
        },
        "long_tail": stages.long_tail() if config.long_tail else None,
        "archives": {
            run.name: {"path": stages.archive(run), **stages.sample(run)["archive"]} for run in runs
        },
        "candidates": {name: _of_candidate(config, stages, name) for name in config.candidates},
        "lines": lines,
        "distances": [name for name in _DISTANCES if any(name in line for line in lines)],
    }
    return make_result("compare", command, settings, figures, versions=checkpoint.versions())


def _of_candidate(config: ConfigDict, stages: Stages, name: str) -> dict[str, Any]:
    """What holds for all runs of a candidate."""
    layout, floor = stages.prepare(name), stages.floor(name)
    score = stages.score(next(run for run in plan.runs(config) if run.candidate == name))
    return {
        "tokenizer": stages.tokenizer(name),
        "tokens_per_image": layout["tokens_per_image"],
        "vocab_size": layout["vocab_size"],
        "seq_len": layout["seq_len"],
        "learning_rate": stages.learning_rate(name),
        "overfit": stages.overfit(name),
        "bits_comparable_with": [
            other
            for other, options in config.candidates.items()
            if options.bits and options.bits == config.candidates[name].bits
        ],
        "psnr_db": floor["psnr_db"],
        "floor": _distances(score.get("floor", {})),
    }


def _of_run(stages: Stages, run: plan.Run) -> dict[str, Any]:
    trained = stages.train(run, math.nan)  # is finished, so the learning rate is not used
    sampled, score = stages.sample(run), stages.score(run)
    return {
        **{name: trained[name] for name in _OF_TRAINING},
        **{
            name.removeprefix("eval/"): trained[name]
            for name in ("eval/bits_per_image", "eval/bits_per_dimension")
            if name in trained
        },
        **{name: sampled[name] for name in _OF_SAMPLES if name in sampled},
        **_distances(score),
        **{
            f"{name}_coded": value
            for name, value in _distances(score.get("against_coded_references", {})).items()
        },
    }


def _distances(values: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in _DISTANCES if values.get(name) is not None]
    errors = [f"{name}_standard_error" for name in names]
    return {name: values[name] for name in (*names, *errors) if values.get(name) is not None}


def _over_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each number over seeds, and its standard error if there are several."""
    result: dict[str, Any] = {}
    for name in found[0]:
        values = [each[name] for each in found if each.get(name) is not None]
        if name.endswith("_standard_error"):
            continue
        result[name] = float(np.mean(values)) if len(set(values)) > 1 else values[0]
        if len(values) > 1:
            error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
            result[f"{name}_standard_error"] = error
        elif f"{name}_standard_error" in found[0]:
            result[f"{name}_standard_error"] = found[0][f"{name}_standard_error"]
    return result


def table(result: Mapping[str, Any]) -> str:
    """Formats compare.json for a terminal: a block for each model and budget."""
    distance = next(
        (name for name in ("fid", "frechet_distance") if name in result["lines"][0]), None
    )
    columns = [
        ("tokens per image", None),
        ("images seen", "images_seen"),
        ("TFLOP", "train_flops"),
        ("bits per image", "bits_per_image"),
        ("valid", "valid"),
        ("recognised", "recognised"),
        (distance, distance),
        ("images/s", "images_per_second"),
    ]
    columns = [
        (title, name)
        for title, name in columns
        if title and (name is None or any(name in line for line in result["lines"]))
    ]
    text = []
    blocks = dict.fromkeys((line["model"], line["budget"]) for line in result["lines"])
    for model, budget in blocks:
        text.append(f"\nmodel {model}, equal {budget}")
        text.append(f"{'':20}" + "".join(f"{title:>20}" for title, _ in columns))
        for line in result["lines"]:
            if (line["model"], line["budget"]) != (model, budget):
                continue
            cells = [_cell(result, line, name) for _, name in columns]
            text.append(f"{line['candidate']:20}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(text)


def _cell(result: Mapping[str, Any], line: Mapping[str, Any], name: str | None) -> str:
    candidate = result["candidates"][line["candidate"]]
    if name is None:
        return f"{candidate['tokens_per_image']:.1f}"
    if name == "bits_per_image" and len(candidate["bits_comparable_with"]) < 2:
        return "not comparable"
    if name not in line:
        return "-"
    scale = 1e-12 if name == "train_flops" else 1.0
    error = line.get(f"{name}_standard_error")
    return numbers.with_error(line[name] * scale, error * scale if error else None)
