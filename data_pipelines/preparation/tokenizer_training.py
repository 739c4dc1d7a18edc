"""Trains a BPE tokenizer on a sample of the training images, as a step of preparation."""

from __future__ import annotations

import concurrent.futures
import hashlib
import heapq
from collections.abc import Iterator

from data_pipelines.preparation import listing
from data_pipelines.representations.base import Representation, TokenizedRepresentation
from data_pipelines.sources import Item, Source
from data_pipelines.utils.cpus import num_cpus

# The paper trains 320 entries on 10,000 images (arXiv 2408.08459, section 3.1).
VOCAB_SIZE = 320
DOCUMENTS = 10_000


class TokenizerTrainingError(ValueError):
    """None of the sampled images could be encoded."""


def train(
    source: Source,
    listed: listing.Listing,
    representation: TokenizedRepresentation,
    *,
    vocab_size: int = VOCAB_SIZE,
    documents: int = DOCUMENTS,
    seed: int = 0,
    kind: str = "bpe",
) -> bytes:
    """Trains a SentencePiece model on the codec bytes of sampled training images.

    Args:
      source: source of the images.
      listed: its listing; only the split 'train' is sampled.
      representation: with the byte tokenizer; its tokens are the training data.
      vocab_size: entries of the model, including special tokens.
      documents: number of images to sample; all if there are fewer.
      seed: of the sample.
      kind: of tokenizer, see `TokenizedRepresentation.train_tokenizer`.

    Returns:
      The model file. Equal arguments give equal bytes for any number of threads.

    Raises:
      TokenizerTrainingError: none of the sampled images could be encoded.
    """
    chosen = sample(listed, documents, seed)
    found = list(_codec_bytes(source, chosen, representation))
    if not found:
        raise TokenizerTrainingError(
            f"none of {len(chosen)} sampled images of {source.spec} could be encoded, so there is "
            "nothing to train a tokenizer on; prepare with --train_tokenizer=0 to see the reasons"
        )
    return representation.train_tokenizer(found, vocab_size, kind)


def sample(listed: listing.Listing, documents: int, seed: int) -> list[Item]:
    """Samples the items with the smallest seeded key hashes, in order of hashes."""
    ranked = (
        (hashlib.sha256(f"{seed}:{item.key}".encode()).digest(), item)
        for name in listed.names("train")
        for item in listing.read(listed.folder, name, listed.facts["listing"][name])
    )
    return [item for _, item in heapq.nsmallest(documents, ranked, key=lambda pair: pair[0])]


def _codec_bytes(
    source: Source, items: list[Item], representation: Representation
) -> Iterator[bytes]:
    """Encodes items to bytes; unusable ones are ignored here and rejected by `process_shard`."""

    def encode(item: Item) -> list[bytes]:
        found: list[bytes] = []
        try:
            for medium in representation.open(source.read(item.locator)):
                found.append(representation.encode(medium).astype("u1").tobytes())
        except ValueError:
            pass  # clips before the damage are used
        return found

    # Pillow and PyAV release the GIL, so threads use all cores.
    with concurrent.futures.ThreadPoolExecutor(num_cpus()) as pool:
        for found in pool.map(encode, items):
            yield from found
