"""The start token under which a document is scored or generated: its label, BOS, or all labels.

`likelihoods` scores documents under these start tokens; `evals.prompting` and `evals.compression`
start documents with them.
"""

from __future__ import annotations

from data_pipelines.representations.base import Representation
from evals.inputs.documents import Document, Documents

CONDITIONING = ("auto", "label", "none", "marginal")


def resolve_conditioning(
    conditioning: str, representation: Representation, documents: Documents
) -> str:
    """Replaces "auto", and checks that model and documents support the conditioning.

    Args:
      conditioning: one of `CONDITIONING`. "label": each document's label; "none": BOS; "marginal":
        the mean probability over all labels; "auto": "label" if the model has as many labels as
        the images have classes, else "none".
      representation: of the model.
      documents: the documents to condition.

    Returns:
      "label", "none" or "marginal".

    Raises:
      ValueError: unknown conditioning, or the model or the documents have no such labels.
    """
    if conditioning not in CONDITIONING:
        raise ValueError(
            f"found conditioning={conditioning!r}, expected one of {', '.join(CONDITIONING)}"
        )
    labels, classes = representation.num_labels, documents.num_classes
    if conditioning == "auto":
        return "label" if labels and labels == classes else "none"
    if conditioning != "none" and not labels:
        raise ValueError(
            f"conditioning is {conditioning!r}, but the model was trained without labels; use none"
        )
    if conditioning == "label" and labels != classes:
        raise ValueError(
            f"conditioning is 'label', but the model has {labels} labels and {documents.name} has "
            f"{classes} classes; use none or marginal"
        )
    return conditioning


def start_tokens(
    conditioning: str, representation: Representation, document: Document
) -> list[int]:
    """The start tokens of a document: one, or one per label for "marginal".

    Raises ValueError for "label" and a document without a label.
    """
    if conditioning == "none":
        return [representation.bos]
    if conditioning == "label":
        if document.label < 0:
            raise ValueError(f"{document.key} has no label; use conditioning none or marginal")
        return [representation.label_token(document.label)]
    return [representation.label_token(label) for label in range(representation.num_labels)]
