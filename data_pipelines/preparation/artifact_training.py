"""Trains the artefacts of a representation on a sample of training images, before encoding.

A step of preparation: a BPE tokenizer of codec bytes, or the colour clusters of pixels.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import heapq
from collections.abc import Iterator
from typing import Any

from data_pipelines.preparation import listing
from data_pipelines.representations.base import Representation
from data_pipelines.sources import Item, Source
from data_pipelines.utils.cpus import num_cpus

# The paper trains its tokenizer on 10,000 images (arXiv 2408.08459, section 3.1).
DOCUMENTS = 10_000


class TrainingError(ValueError):
    """None of the sampled images can be used."""


def train(
    source: Source,
    listed: listing.Listing,
    representation: Representation,
    *,
    vocab_size: int = 0,
    documents: int = DOCUMENTS,
    kind: str = "",
    seed: int = 0,
) -> Representation:
    """Trains the artefacts of a representation on sampled training images.

    Args:
      source: source of the images.
      listed: its listing; only the split 'train' is sampled.
      representation: without trained artefacts.
      vocab_size: entries of a tokenizer, including special tokens; 0: no tokenizer.
      documents: number of images to sample; all if there are fewer.
      kind: of tokenizer, see `TokenizedRepresentation.train_tokenizer`.
      seed: of the sample.

    Returns:
      The representation with the artefacts. Equal arguments give equal ones for any number of
      threads.

    Raises:
      TrainingError: none of the sampled images can be used.
      ValueError: see `Representation.trained`.
    """
    chosen = sample(listed, documents, seed)
    samples = list(_samples(source, chosen, representation))
    if not samples:
        raise TrainingError(
            f"none of {len(chosen)} sampled images of {source.spec} can be encoded, so there is "
            "nothing to train on; prepare with representation.tokenizer=bytes, or for pixels "
            "representation.clusters=0, to see the reasons"
        )
    return representation.trained(samples, vocab_size=vocab_size, kind=kind, seed=seed)


def sample(listed: listing.Listing, documents: int, seed: int) -> list[Item]:
    """Samples the items with the smallest seeded key hashes, in order of hashes."""
    ranked = (
        (hashlib.sha256(f"{seed}:{item.key}".encode()).digest(), item)
        for name in listed.names("train")
        for item in listing.read(listed.folder, name, listed.facts["listing"][name])
    )
    return [item for _, item in heapq.nsmallest(documents, ranked, key=lambda pair: pair[0])]


def _samples(source: Source, items: list[Item], representation: Representation) -> Iterator[Any]:
    """What is needed of each item; `process_shard` will reject the unusable ones."""

    def of_item(item: Item) -> list[Any]:
        found: list[Any] = []
        try:
            for medium in representation.open(source.read(item.locator)):
                found.append(representation.training_sample(medium))
        except ValueError:
            pass  # clips before the damage are used
        return found

    # Pillow and PyAV release the GIL, so threads use all cores.
    with concurrent.futures.ThreadPoolExecutor(num_cpus()) as pool:
        for found in pool.map(of_item, items):
            yield from found
