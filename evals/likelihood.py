"""Example: python -m evals.likelihood --workdir=runs/digits --out=evaluation

Computes the exact log-likelihood of images under a model: bits per image, per byte of the codec's
stream, per pixel, per dimension (of pixels that lose nothing) and per token. Without --images it
uses the eval split of the run. Writes likelihood.json, and a line for each document to
likelihood.jsonl.

Bits per image are comparable between models with different tokens, as long as they describe the
same pixels; psnr_db reports the loss of the codec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.files import write_atomically
from data_pipelines.utils.seeds import MAX_SEED
from evals.codelength import likelihoods
from evals.codelength.conditioning import CONDITIONING, resolve_conditioning
from evals.codelength.likelihoods import Scored
from evals.inputs.documents import Documents
from evals.reporting.numbers import with_error
from evals.reporting.results import command_line, make_result, write_json
from jpeglm_jax.generation.scoring import Scorer
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint
from jpeglm_jax.training.data import run_folders


def eval_split(model: TrainedModel, workdir: epath.PathLike) -> str:
    """The spec of a run's eval split, of all its folders of shards, for `Documents`.

    Raises ValueError if a folder is missing.
    """
    folders = run_folders(model.config.data, workdir)
    for folder in folders:
        if not epath.Path(folder).is_dir():
            raise ValueError(f"there is no folder {folder} with the run's shards; give --images")
    return f"shards:{','.join(folders)}:eval"


def likelihood(
    model: TrainedModel,
    documents: Documents,
    out: epath.PathLike,
    *,
    conditioning: str = "auto",
    batch_size: int = 16,
    stride: int = 0,
) -> dict[str, Any]:
    """Scores documents and writes likelihood.json and likelihood.jsonl to a folder.

    Args:
      model: a trained model.
      documents: of the model's representation.
      out: folder to write.
      conditioning: one of `CONDITIONING`, see `resolve_conditioning`.
      batch_size: rows per batch.
      stride: of the windows of long documents, see `Scorer`; 0: half the sequence length.

    Returns:
      The contents of likelihood.json.

    Raises:
      ValueError: no document can be read, or the labels do not match the model's.
    """
    representation = model.representation
    conditioning = resolve_conditioning(conditioning, representation, documents)
    given = {"conditioning": conditioning, "batch_size": batch_size, "stride": stride}
    scorer = Scorer(model, batch_size=batch_size, stride=stride)
    scored = likelihoods.score_all(representation, documents, conditioning, scorer)
    facts = likelihoods.facts(model, documents, conditioning, scorer, scored)
    warnings = facts.pop("warnings")
    found = make_result(
        "likelihood",
        scoring_command("evals.likelihood", model, documents, out, given),
        facts.pop("settings"),
        {**likelihoods.summary(scored, representation.num_dimensions), **facts},
        versions=checkpoint.versions(),
        warnings=warnings,
    )
    if jax.process_index() == 0:
        out = epath.Path(out)
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "likelihood.jsonl", _lines(scored).encode())
        write_json(out / "likelihood.json", found)
    return found


def scoring_command(
    module: str,
    model: TrainedModel,
    documents: Documents,
    out: epath.PathLike,
    given: Mapping[str, Any],
    **flags: Any,
) -> str:
    """The command line of a job that scores these documents, see `define_flags`.

    Args:
      module: of the command.
      model: of a run.
      documents: the scored ones.
      out: folder of the job.
      given: conditioning, batch_size and stride as the job resolved them.
      **flags: further flags of the job.
    """
    own = {"workdir": model.workdir, "step": model.step, "images": documents.name}
    own |= {"num": documents.num, "seed": documents.seed, **given, **flags, "out": out}
    return command_line(module, own, {"num": 0, "seed": 0, "batch_size": 16, "stride": 0})


def _lines(scored: Sequence[Scored]) -> str:
    lines = [
        {
            "key": document.key,
            "label": document.label,
            "bits": bits,
            "tokens": document.tokens.size,
            "bytes": document.codec_bytes,
        }
        for document, bits in scored
    ]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def table(result: dict[str, Any]) -> str:
    """Formats likelihood.json for a terminal."""
    of = result["settings"]
    lines = [f"{result['n_images']} images ({of['images_are']}), label: {of['label']}"]
    for name in ("image", "byte", "pixel", "dimension", "token"):
        value, error = result.get(f"bits_per_{name}"), result.get(f"bits_per_{name}_standard_error")
        if value is not None:
            lines.append(f"bits per {name:9} {with_error(value, error, '+-')}")
    if "stream_bits_per_image" in result:
        stream = result["stream_bits_per_image"]
        lines.append(f"the codec's stream has {stream:.1f} bits per image")
    if "psnr_db" in result:
        lines.append(f"the codec has a PSNR of {result['psnr_db']:.2f} dB")
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    model, documents = load_inputs(values)
    result = likelihood(
        model,
        documents,
        values.out,
        conditioning=values.conditioning,
        batch_size=values.batch_size,
        stride=values.stride,
    )
    print(table(result))


def load_inputs(values: Any) -> tuple[TrainedModel, Documents]:
    """Loads the model and the documents of the flags of `define_flags`."""
    model = checkpoint.load(values.workdir, values.step)
    images = values.images or eval_split(model, values.workdir)
    return model, Documents(images, model.representation, values.num, values.seed)


def define_flags() -> None:
    """Defines the flags of jobs that score real images with one model."""
    flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
    flags.DEFINE_integer("step", None, "Step of the checkpoint; default the newest.")
    flags.DEFINE_string("images", None, "Real images or shards; default the run's eval split.")
    flags.DEFINE_integer("num", 0, "Number of images, sampled at random; 0: all.", 0)
    flags.DEFINE_integer("seed", 0, "Random seed.", 0, MAX_SEED)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_enum(
        "conditioning",
        "auto",
        CONDITIONING,
        "Start token: each image's label, none (BOS), or the marginal over all labels.",
    )
    flags.DEFINE_integer("batch_size", 16, "Rows per batch.", lower_bound=1)
    flags.DEFINE_integer("stride", 0, "Stride of windows over long documents; 0: half a window.", 0)


if __name__ == "__main__":
    define_flags()
    command.run(main, ShardError)
