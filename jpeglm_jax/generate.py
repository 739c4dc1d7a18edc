"""Example: python -m jpeglm_jax.generate --checkpoint=runs/jpeg-digits --num=64 --out=samples

Draws documents from a trained model and writes them as files, with a grid of all of them
(grid.png) and a line about each (manifest.jsonl). A label-conditional model takes its labels in
turn, or the one given by --label. Sampling flags that are left out are the run's own
(config.sample).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import tqdm
from absl import flags
from etils import epath
from PIL import Image

from data_pipelines import command, sheet
from jpeglm_jax import checkpoint, sampling
from jpeglm_jax.checkpoint import TrainedModel
from jpeglm_jax.engine import Engine

_GRID = 256  # images in the grid, at most


def generate(
    model: TrainedModel,
    out: epath.PathLike,
    labels: Sequence[int],
    choose: sampling.Filter,
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, int]:
    """Draws a document for each label and writes it.

    Args:
      model: what to draw from.
      out: folder for the files, manifest.jsonl and grid.png.
      labels: the label of each document; -1 for none.
      choose: how tokens are drawn.
      seed: with its number it decides what a document is.
      batch_size: documents drawn together.

    Returns:
      Counts: `requested`, `valid` (strictly), `written` (what has a file at all).
    """
    out = epath.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    representation = model.representation
    prompts = sampling.label_prompts(representation, labels)
    engine = Engine(
        model.recipe,
        model.mesh,
        choose,
        batch_size=min(batch_size, len(labels)),
        length=model.config.row_length,
        seed=seed,
        bos=representation.bos,
    )
    counts = {"requested": len(labels), "valid": 0, "written": 0}
    lines: list[str] = []
    shown: list[Image.Image | None] = []
    drawn = tqdm.tqdm(engine(model.params, prompts), total=len(labels), unit="image")
    for sample in sorted(drawn, key=lambda sample: sample.number):
        number = sample.number
        judged = representation.inspect(sample.tokens)
        name = f"{number:06d}{representation.suffix}"
        try:
            (out / name).write_bytes(representation.to_bytes(sample.tokens))
        except ValueError as error:  # tokens that stand for no byte: there is no file to write
            name, reason = "", str(error)
        else:
            reason = judged.error
        counts["valid"] += judged.valid
        counts["written"] += bool(name)
        line = {"file": name, "number": number, "seed": seed, "label": int(labels[number])}
        line |= {"tokens": sample.tokens.size, "complete": sample.complete}
        line |= {"log_likelihood": sample.log_likelihood, "valid": judged.valid, "error": reason}
        lines.append(json.dumps(line))
        if len(shown) < _GRID:
            shown.append(sheet.shown(representation, sample.tokens))
    (out / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    sheet.save(sheet.sheet(shown), out / "grid.png")
    return counts


def chosen_labels(model: TrainedModel, num: int, label: int | None) -> list[int]:
    """The label of each of `num` documents: the one asked for, or each in turn.

    Raises ValueError for a label that the model does not know.
    """
    if label is None:
        return sampling.every_label(model.representation, num)
    if not 0 <= label < model.representation.num_labels:
        known = model.representation.num_labels
        raise ValueError(
            f"label is {label}; this model "
            + (f"knows 0 to {known - 1}" if known else "was trained without labels")
        )
    return [label] * num


def chosen_filter(
    model: TrainedModel, temperature: float | None, top_k: int | None, top_p: float | None
) -> sampling.Filter:
    """How to draw: as the run's configuration says, where None is given."""
    own = model.config.sample
    return sampling.Filter(
        own.temperature if temperature is None else temperature,
        own.top_k if top_k is None else top_k,
        own.top_p if top_p is None else top_p,
    )


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    values = flags.FLAGS
    if values.num < 1:
        raise ValueError(f"num is {values.num}; expected 1 or more")
    model = checkpoint.load(values.checkpoint, values.step)
    choose = chosen_filter(model, values.temperature, values.top_k, values.top_p)
    labels = chosen_labels(model, values.num, values.label)
    counts = generate(
        model, values.out, labels, choose, seed=values.seed, batch_size=values.batch_size
    )
    print(
        f"{counts['requested']} documents from step {model.step}: {counts['valid']} strictly "
        f"valid, {counts['written']} written to {values.out}, together in "
        f"{epath.Path(values.out) / 'grid.png'}"
    )


def _define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Workdir of a training run.", required=True)
    flags.DEFINE_integer("step", None, "Which checkpoint; default the newest.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_integer("num", 64, "How many documents.")
    flags.DEFINE_integer("label", None, "Of all documents; default each label in turn.")
    flags.DEFINE_integer("seed", 0, "Decides what is drawn.")
    flags.DEFINE_float("temperature", None, "Divides the logits; 0: the likeliest token.")
    flags.DEFINE_integer("top_k", None, "Draw among the k likeliest tokens; 0: all.")
    flags.DEFINE_float("top_p", None, "Draw among the likeliest of this probability; 1: all.")
    flags.DEFINE_integer("batch_size", 64, "Documents drawn together.")


if __name__ == "__main__":
    _define_flags()
    command.run(main)
