"""Log-likelihoods of documents, their means with standard errors, and facts for a report.

`jpeglm_jax.generation.scoring` computes log-likelihoods of token sequences. `evals.likelihood` and
`evals.compression` report the results of this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from data_pipelines.representations.base import Representation
from evals.codelength.conditioning import start_tokens
from evals.inputs.documents import Document, Documents
from evals.reporting import settings
from jpeglm_jax.generation.scoring import Scorer
from jpeglm_jax.model.trained import TrainedModel

# How documents are conditioned -> the setting `label` of a result.
_LABELS = {"label": "given", "none": "none", "marginal": "marginal"}


class Scored(NamedTuple):
    """A document and its code length under the model.

    Attributes:
      document: the document.
      bits: minus the base-2 logarithm of its probability, including its end token.
    """

    document: Document
    bits: float


def score(
    representation: Representation, documents: Documents, conditioning: str, scorer: Scorer
) -> Iterator[Scored]:
    """Scores documents, in order.

    Args:
      representation: of the model.
      documents: of this representation.
      conditioning: "label", "none" or "marginal" (the mean probability over all labels).
      scorer: of the model.
    """
    pending: list[Document] = []

    def conditioned() -> Iterator[tuple[int, np.ndarray]]:
        for document in documents:
            pending.append(document)
            for start_token in start_tokens(conditioning, representation, document):
                yield start_token, document.tokens

    values: list[float] = []
    for value in scorer(conditioned()):
        values.append(value)
        if conditioning != "marginal" or len(values) == representation.num_labels:
            total = float(np.logaddexp.reduce(values)) - math.log(len(values))
            values = []
            yield Scored(pending.pop(0), -total / math.log(2))


def score_all(
    representation: Representation, documents: Documents, conditioning: str, scorer: Scorer
) -> list[Scored]:
    """`score` with a progress bar. Raises ValueError if no document can be read."""
    found = score(representation, documents, conditioning, scorer)
    scored = list(tqdm.tqdm(found, total=len(documents), unit="image", desc="bits"))
    if not scored:
        name, reason = documents.rejected[0]
        raise ValueError(
            f"none of the {len(documents)} images of {documents.name} can be read; the first, "
            f"{name}: {reason}"
        )
    return scored


def summary(scored: Sequence[Scored], num_dimensions: int = 0) -> dict[str, Any]:
    """Means over the images with their standard errors; those of ratios by linearisation.

    Args:
      scored: the documents.
      num_dimensions: of a document, see `Representation.num_dimensions`.

    Returns:
      bits_per_image, _byte (of the codec's stream), _pixel, _dimension (where nothing is lost) and
      _token with NAME_standard_error, stream_bits_per_image where there is a codec, and psnr_db if
      its error is known.
    """
    bits = np.array([each.bits for each in scored])
    sizes = [each.document.tokens.size for each in scored]
    stream = np.array([each.document.codec_bytes for each in scored])
    pixels = np.array([each.document.pixels for each in scored])
    errors = np.array([each.document.squared_error for each in scored])
    result: dict[str, Any] = {}
    units = {
        "image": np.ones(len(scored)),
        "byte": stream,
        "pixel": pixels,
        "dimension": np.full(len(scored), num_dimensions),
        "token": np.array(sizes) + 1,  # with the end token
    }
    for name, counts in units.items():
        if counts.all():
            result[f"bits_per_{name}"] = float(bits.sum() / counts.sum())
            result[f"bits_per_{name}_standard_error"] = ratio_error(bits, counts)
    if stream.any():
        result["stream_bits_per_image"] = float(8 * stream.mean())
    if np.isfinite(errors).all() and errors.any():
        result["psnr_db"] = float(10 * np.log10(255**2 / errors.mean()))
    return result


def ratio_error(numerators: np.ndarray, denominators: np.ndarray) -> float | None:
    """Standard error of sum(numerators) / sum(denominators) over images; None for one image."""
    n = len(numerators)
    if n < 2:
        return None
    residuals = numerators - numerators.sum() / denominators.sum() * denominators
    return float(np.sqrt(np.square(residuals).sum() * n / (n - 1)) / denominators.sum())


def facts(
    model: TrainedModel,
    documents: Documents,
    conditioning: str,
    scorer: Scorer,
    scored: Sequence[Scored],
) -> dict[str, Any]:
    """Counts, warnings, rejected images and settings of a report on scored documents."""
    long = sum(each.document.tokens.size + 1 > scorer.seq_len for each in scored)
    return {
        "n_images": len(scored),
        "n_tokens": sum(each.document.tokens.size + 1 for each in scored),
        "n_longer_than_context": long,
        "warnings": _warnings(model, documents, conditioning, long, scorer),
        "rejected": [list(pair) for pair in documents.rejected],
        "settings": {
            **settings.of_model(model),
            "images": documents.name,
            "images_are": settings.images_are(model, documents.name),
            "n_images": len(scored),
            "subset_seed": documents.seed if documents.num else None,
            "label": _LABELS[conditioning],
            "context": scorer.seq_len,
            "stride": scorer.stride,
        },
    }


def _warnings(
    model: TrainedModel, documents: Documents, conditioning: str, long: int, scorer: Scorer
) -> list[str]:
    """Warnings on how the numbers may be compared."""
    found = []
    labels = model.representation.num_labels
    if conditioning == "label":
        found.append(
            f"bits are conditional on the label; coding one of {labels} labels takes up to "
            f"{math.log2(labels):.2f} more bits per image"
        )
    if conditioning == "none" and labels and not model.config.data.label_dropout:
        found.append(
            "the model was never trained on documents without a label; use conditioning label or "
            "marginal"
        )
    if long:
        found.append(
            f"{long} documents are longer than the model's sequence length of {scorer.seq_len} and "
            f"are scored in windows with a stride of {scorer.stride}"
        )
    if documents.rejected:
        name, reason = documents.rejected[0]
        found.append(
            f"{len(documents.rejected)} images of {documents.name} were rejected as unreadable and "
            f"do not count; the first is {name}: {reason}"
        )
    return found
