"""Example: python -m evals.likelihood --workdir=runs/digits --out=evaluation

How many bits a model needs for images that it has not seen: its exact log-likelihood, an image, a
byte of the codec's stream, a pixel and a token. Without --images these are the run's own held-out
documents. Writes likelihood.json, and a line for each document to likelihood.jsonl.

Bits an image compare between models whatever their tokens are, as long as they describe the same
pixels; where the codec loses something, psnr_db tells how much.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from absl import flags
from etils import epath

from data_pipelines.representations.base import Representation
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.files import write_atomically
from evals.codelength.scoring import Scorer
from evals.inputs.documents import Document, Documents
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

GIVEN = ("auto", "label", "none", "marginal")


class Scored(NamedTuple):
    """A document and what it takes.

    Attributes:
      document: which.
      bits: minus the binary logarithm of its probability, its end included.
    """

    document: Document
    bits: float


def held_out(model: TrainedModel, workdir: epath.PathLike) -> str:
    """Where the documents that a run kept from training lie, for `Documents`.

    Raises ValueError if they are no longer there.
    """
    folder = model.config.data.shards or str(epath.Path(workdir) / "data")
    if not epath.Path(folder).is_dir():
        raise ValueError(f"the run's shards are not in {folder}; give --images")
    return f"shards:{folder}:eval"


def choose_given(given: str, representation: Representation, documents: Documents) -> str:
    """What the model is told of a document: "label", "none" or "marginal".

    "auto" gives the label where the model knows as many as the images have classes.

    Raises ValueError for what the model or the images do not have.
    """
    if given not in GIVEN:
        raise ValueError(f"found given={given!r}, expected one of {', '.join(GIVEN)}")
    known, there = representation.num_labels, documents.labelled_as
    if given == "auto":
        return "label" if known and known == there else "none"
    if given != "none" and not known:
        raise ValueError(f"given is {given!r}, and the model was trained without labels")
    if given == "label" and known != there:
        raise ValueError(
            f"given is 'label', but the model knows {known} labels and {documents.name} has "
            f"{there} classes; give none or marginal"
        )
    return given


def start_tokens(given: str, representation: Representation, document: Document) -> list[int]:
    """The start tokens under which a document is looked at; several for the marginal.

    Raises ValueError for a document without a label where it is to be given.
    """
    if given == "none":
        return [representation.bos]
    if given == "label":
        if document.label < 0:
            raise ValueError(f"{document.key} has no label to give; use none or marginal")
        return [representation.label_token(document.label)]
    return [representation.label_token(label) for label in range(representation.num_labels)]


def score(
    model: TrainedModel, documents: Documents, given: str, scorer: Scorer
) -> Iterator[Scored]:
    """Goes through documents and tells what each takes, in order.

    Args:
      model: whose bits.
      documents: of its representation.
      given: "label", "none" or "marginal": the mean probability over all labels, each as likely.
      scorer: of the same model.
    """
    representation = model.representation
    waiting: list[Document] = []

    def framed() -> Iterator[tuple[int, np.ndarray]]:
        for document in documents:
            waiting.append(document)
            for start_token in start_tokens(given, representation, document):
                yield start_token, document.tokens

    found: list[float] = []
    for value in scorer(framed()):
        found.append(value)
        if given != "marginal" or len(found) == representation.num_labels:
            total = float(np.logaddexp.reduce(found)) - math.log(len(found))
            found = []
            yield Scored(waiting.pop(0), -total / math.log(2))


def summary(scored: Sequence[Scored], byte_lengths: np.ndarray) -> dict[str, Any]:
    """Means with their standard errors over the images; those of ratios by linearisation."""
    bits = np.array([each.bits for each in scored])
    sizes = [each.document.tokens.size for each in scored]
    stream = np.array([int(byte_lengths[each.document.tokens].sum()) for each in scored])
    pixels = np.array([each.document.pixels for each in scored])
    losses = np.array([each.document.squared_error for each in scored])
    result: dict[str, Any] = {}
    per = {
        "image": np.ones(len(scored)),
        "byte": stream,
        "pixel": pixels,
        "token": np.array(sizes) + 1,  # the end is one, too
    }
    for name, of in per.items():
        if of.all():
            result[f"bits_per_{name}"] = float(bits.sum() / of.sum())
            result[f"bits_per_{name}_standard_error"] = ratio_error(bits, of)
    result["stream_bits_per_image"] = float(8 * stream.mean())
    if np.isfinite(losses).all() and losses.any():
        result["psnr_db"] = float(10 * np.log10(255**2 / losses.mean()))
    return result


def ratio_error(above: np.ndarray, below: np.ndarray) -> float | None:
    """Standard error of sum(above) / sum(below) over images; None for a single one."""
    n = len(above)
    if n < 2:
        return None
    residuals = above - above.sum() / below.sum() * below
    return float(np.sqrt(np.square(residuals).sum() * n / (n - 1)) / below.sum())


def likelihood(
    model: TrainedModel,
    documents: Documents,
    out: epath.PathLike,
    *,
    given: str = "auto",
    batch_size: int = 16,
    stride: int = 0,
) -> dict[str, Any]:
    """Scores documents and writes likelihood.json and likelihood.jsonl to a folder.

    Args:
      model: whose likelihood.
      documents: of the model's representation.
      out: folder to write.
      given: one of `GIVEN`, see `choose_given`.
      batch_size: rows computed together.
      stride: of the windows of long documents, see `scoring`; 0: half of what the model reads.

    Returns:
      What is in likelihood.json.

    Raises:
      ValueError: no document could be read, or labels that do not fit.
    """
    given = choose_given(given, model.representation, documents)
    scorer = Scorer(model, batch_size=batch_size, stride=stride)
    scored = score_all(model, documents, given, scorer)
    result = {
        **summary(scored, model.representation.byte_lengths),
        **facts(model, documents, given, scorer, scored),
    }
    if jax.process_index() == 0:
        out = epath.Path(out)
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "likelihood.jsonl", _lines(scored, model).encode())
        write_json(out / "likelihood.json", result)
    return result


def score_all(
    model: TrainedModel, documents: Documents, given: str, scorer: Scorer
) -> list[Scored]:
    """`score` with a bar. Raises ValueError if no document could be read."""
    found = score(model, documents, given, scorer)
    scored = list(tqdm.tqdm(found, total=len(documents), unit="image", desc="bits"))
    if not scored:
        name, reason = documents.rejected[0]
        raise ValueError(
            f"none of the {len(documents)} images of {documents.name} can be read; the first, "
            f"{name}: {reason}"
        )
    return scored


def facts(
    model: TrainedModel,
    documents: Documents,
    given: str,
    scorer: Scorer,
    scored: Sequence[Scored],
) -> dict[str, Any]:
    """What belongs beside the numbers of any report on scored documents."""
    long = sum(each.document.tokens.size + 1 > scorer.length for each in scored)
    return {
        "n_images": len(scored),
        "n_tokens": sum(each.document.tokens.size + 1 for each in scored),
        "n_longer_than_context": long,
        "warnings": _warnings(model, documents, given, long, scorer),
        "rejected": [list(pair) for pair in documents.rejected],
        "settings": {
            "step": model.step,
            "representation": model.representation.to_config(),
            "fingerprint": model.representation.fingerprint,
            "images": documents.about,
            "given": given,
            "context": scorer.length,
            "stride": scorer.stride,
        },
        "versions": checkpoint.versions(),
    }


def write_json(path: epath.PathLike, result: Any) -> None:
    """Writes a report's JSON; a reader never sees half of it."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(epath.Path(path), text.encode() + b"\n")


def _lines(scored: Sequence[Scored], model: TrainedModel) -> str:
    lengths = model.representation.byte_lengths
    lines = [
        {
            "key": document.key,
            "label": document.label,
            "bits": bits,
            "tokens": document.tokens.size,
            "bytes": int(lengths[document.tokens].sum()),
        }
        for document, bits in scored
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _warnings(
    model: TrainedModel, documents: Documents, given: str, long: int, scorer: Scorer
) -> list[str]:
    """What a reader of the numbers must know."""
    found = []
    labels = model.representation.num_labels
    if given == "label":
        found.append(
            f"bits are given the label; telling which of {labels} it is takes up to "
            f"{math.log2(labels):.2f} bits an image more"
        )
    if given == "none" and labels and not model.config.data.label_dropout:
        found.append("the model has never seen a document without a label; use label or marginal")
    if long:
        found.append(
            f"{long} documents are longer than the {scorer.length} places that the model reads, "
            f"and are read through windows that move on by {scorer.stride}"
        )
    if documents.rejected:
        name, reason = documents.rejected[0]
        found.append(
            f"{len(documents.rejected)} images of {documents.name} cannot be read and do not "
            f"count, the first is {name}: {reason}"
        )
    return found


def table(result: dict[str, Any]) -> str:
    """likelihood.json for a terminal."""
    lines = [f"{result['n_images']} images, given {result['settings']['given']}"]
    for name in ("image", "byte", "pixel", "token"):
        value, error = result.get(f"bits_per_{name}"), result.get(f"bits_per_{name}_standard_error")
        if value is not None:
            lines.append(f"bits a {name:6} {value:12.4f}" + (f" +- {error:.4f}" if error else ""))
    lines.append(f"the codec's own code takes {result['stream_bits_per_image']:.1f} bits an image")
    if "psnr_db" in result:
        lines.append(f"the codec shows the images at {result['psnr_db']:.2f} dB")
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    model, documents = open_both(values)
    result = likelihood(
        model,
        documents,
        values.out,
        given=values.given,
        batch_size=values.batch_size,
        stride=values.stride,
    )
    print(table(result))


def open_both(values: Any) -> tuple[TrainedModel, Documents]:
    """The model and the documents that the flags name."""
    model = checkpoint.load(values.workdir, values.step)
    where = values.images or held_out(model, values.workdir)
    return model, Documents(where, model.representation, values.num, values.seed)


def define_flags() -> None:
    """The flags of jobs that look at real images with one model."""
    flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
    flags.DEFINE_integer("step", None, "Which checkpoint; default the newest.")
    flags.DEFINE_string("images", None, "Real images or shards; default the run's held-out ones.")
    flags.DEFINE_integer("num", 0, "How many of them, at random; 0: all.")
    flags.DEFINE_integer("seed", 0, "Chooses them.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_enum("given", "auto", GIVEN, "What the model is told of an image.")
    flags.DEFINE_integer("batch_size", 16, "Rows computed together.")
    flags.DEFINE_integer("stride", 0, "Of windows over long documents; 0: half the context.")


if __name__ == "__main__":
    define_flags()
    command.run(main)
