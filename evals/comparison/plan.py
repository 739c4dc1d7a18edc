"""What a comparison trains: its runs, and how many steps each takes under its budget.

Two budgets are compared. `images`: every candidate sees the same number of images, as in the paper.
`flops`: every candidate has the training FLOPs that one of them takes for these images. All rows
have equally many positions, so a candidate with fewer tokens per image sees more images for the
same FLOPs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from configs import jpeg
from data_pipelines.packing.planner import make_plan
from data_pipelines.shards.reader import Shards
from jpeglm_jax.model.config import model_config
from jpeglm_jax.model.flops import matrix_parameters, train_flops_per_token

BUDGETS = ("images", "flops")
_ROW_BLOCK = 64  # longer rows have a multiple of this many positions


class PlanError(ValueError):
    """A comparison that cannot be run as it is configured."""


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """One training run of a comparison."""

    candidate: str
    model: str
    budget: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.candidate}-{self.model}-{self.budget}-seed{self.seed}"


class Layout(NamedTuple):
    """How the documents of a candidate lie in rows.

    Attributes:
      seq_len: positions of a row.
      batch_size: rows per step.
      images_per_step: documents in these rows, on average.
      tokens_per_image: mean of the training documents.
      vocab_size: of the representation.
    """

    seq_len: int
    batch_size: int
    images_per_step: float
    tokens_per_image: float
    vocab_size: int


def check(config: ConfigDict, scored: bool = True) -> None:
    """Raises PlanError for a configuration that contradicts itself.

    scored: whether there are features to score images with.
    """
    names = tuple(config.candidates)
    if not names:
        raise PlanError("the comparison has no candidates")
    if not config.data.source:
        raise PlanError("the comparison has no data: give --config.data.source")
    if config.flops_of not in names:
        raise PlanError(
            f"flops_of is {config.flops_of!r}; expected one of the candidates {', '.join(names)}"
        )
    named = {option: config[option].candidates for option in ("repeated", "completion")}
    named |= {option: config[option] for option in ("long_tail", "small_elements")}
    for option, chosen in named.items():
        if unknown := sorted(set(chosen) - set(names)):
            raise PlanError(
                f"{option} names {', '.join(unknown)}; expected some of {', '.join(names)}"
            )
    if unknown := sorted(set(config.budgets) - set(BUDGETS)):
        raise PlanError(
            f"budgets names {', '.join(unknown)}; expected some of {', '.join(BUDGETS)}"
        )
    if config.repeated.model not in config.models:
        raise PlanError(
            f"repeated.model is {config.repeated.model!r}; expected one of the models "
            f"{', '.join(config.models)}"
        )
    if len(config.long_tail) not in (0, 2):
        raise PlanError(f"long_tail is {config.long_tail}; expected two candidates, or none")
    scores = [option for option in ("long_tail", "small_elements") if config[option]]
    scores += ["completion.num"] * bool(config.completion.num)
    if scores and not scored:
        raise PlanError(f"{scores[0]} needs features; give --config.features.name")
    if config.small_elements and not config.completion.num:
        raise PlanError("small_elements completes completion.num images, which is 0")
    if not config.learning_rates or not 0 < config.sweep <= 1:
        raise PlanError("expected learning_rates, and a sweep of more than 0 and at most 1")


def models(config: ConfigDict) -> list[str]:
    """The names of the models, the smallest first.

    By size, since a ConfigDict gives its fields in alphabetical order, not in the one written.
    """

    def size(name: str) -> int:
        return matrix_parameters(model_config(model_options(config, name), 0, "cpu"))

    return sorted(config.models, key=size)


def runs(config: ConfigDict) -> list[Run]:
    """All runs of a comparison: those with other seeds last."""
    found = [
        Run(candidate, model, budget, config.seed)
        for model in models(config)
        for budget in config.budgets
        for candidate in config.candidates
    ]
    repeated = config.repeated
    found += [
        Run(candidate, repeated.model, config.budgets[-1], config.seed + number)
        for number in range(1, repeated.seeds)
        for candidate in repeated.candidates
    ]
    return found


def layout(config: ConfigDict, folder: epath.PathLike, num_devices: int) -> Layout:
    """How the documents in a folder of shards lie in rows of a comparison.

    No document is longer than a row: rows are as long as the longest document needs, and a step
    has as many of them as there is room for in the positions of the comparison's step, the same
    number for each device and at least one.
    """
    shards = Shards(folder)
    lengths = np.asarray(shards.lengths, np.int64)
    longest = int(lengths.max()) + 2  # the start token, and room for a token after the end
    if "eval" in shards.manifest["splits"]:
        longest = max(longest, int(Shards(folder, "eval").lengths.max()) + 2)
    seq_len, positions = config.seq_len, config.seq_len * config.batch_size
    if longest > seq_len:
        seq_len = math.ceil(longest / _ROW_BLOCK) * _ROW_BLOCK
    batch_size = max(1, round(positions / seq_len / num_devices)) * num_devices
    stats = make_plan(lengths + 1, seq_len=seq_len, seed=config.seed).stats
    return Layout(
        seq_len,
        batch_size,
        batch_size * stats.documents / stats.rows,
        float(lengths.mean()),
        shards.representation.vocab_size,
    )


def flops_per_step(config: ConfigDict, model: str, rows: Layout) -> float:
    """Training FLOPs of a step, attention counted; see `jpeglm_jax.model.flops`."""
    shape = model_config(model_options(config, model), rows.vocab_size, "cpu")
    return rows.batch_size * rows.seq_len * train_flops_per_token(shape, rows.seq_len)


def steps(
    config: ConfigDict, run: Run, layouts: dict[str, Layout], tokenizer_flops: float = 0.0
) -> int:
    """Steps of a run under its budget.

    Args:
      config: of the comparison.
      run: which.
      layouts: of the run's candidate, and of `config.flops_of`.
      tokenizer_flops: what the training of the candidate's own tokenizer took; part of its budget
        at equal FLOPs.

    Raises PlanError if the tokenizer alone exceeds the budget.
    """
    rows = layouts[run.candidate]
    if run.budget == "images":
        return math.ceil(config.images / rows.images_per_step)
    reference = layouts[config.flops_of]
    budget = math.ceil(config.images / reference.images_per_step) * flops_per_step(
        config, run.model, reference
    )
    if tokenizer_flops >= budget:
        raise PlanError(
            f"the tokenizer of {run.candidate} took {tokenizer_flops:.3g} FLOPs, and the whole "
            f"budget is {budget:.3g}: raise --config.images, or train the tokenizer for less"
        )
    return max(1, round((budget - tokenizer_flops) / flops_per_step(config, run.model, rows)))


def model_options(config: ConfigDict, model: str) -> ConfigDict:
    """`config.model` of a training run for one of the comparison's models."""
    options = jpeg.base().model
    options.update(remat="none", **config.models[model])
    return options


def train_config(
    config: ConfigDict,
    run: Run,
    folder: epath.PathLike,
    rows: Layout,
    num_steps: int,
    learning_rate: float,
) -> ConfigDict:
    """The configuration of a training run.

    Args:
      config: of the comparison.
      run: which.
      folder: of the candidate's shards.
      rows: their layout.
      num_steps: of the run.
      learning_rate: the one found for the candidate.
    """
    found = jpeg.base()
    candidate = config.candidates[run.candidate]
    found.preset = f"{config.preset}-{run.name}"
    found.representation = candidate.representation
    found.data = config.data.copy_and_resolve_references()
    found.data.shards = str(folder)
    found.data.conditional &= candidate.conditional
    found.model = model_options(config, run.model)
    found.optimizer.update(config.optimizer)
    found.optimizer.learning_rate = learning_rate
    found.optimizer.warmup_steps = min(config.optimizer.warmup_steps, max(1, num_steps // 10))
    found.mesh.update(replica=-1, fsdp=1)
    found.compilation_cache = ""  # that of the comparison, if it keeps one
    found.seed, found.steps = run.seed, num_steps
    found.seq_len, found.batch_size = rows.seq_len, rows.batch_size
    found.checkpoint.update(every=500, keep=1)
    found.log.update(every=max(1, num_steps // 50), tensorboard=False)
    found.evaluate.every = num_steps
    found.sample.update(every=0, **config.sample)
    return found
