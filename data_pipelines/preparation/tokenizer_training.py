"""Training a BPE tokenizer on a sample of the training images, as a step of preparation."""

from __future__ import annotations

import concurrent.futures
import hashlib
import heapq
import os
from collections.abc import Iterator

from data_pipelines.preparation import listing
from data_pipelines.representations.base import TokenizedRepresentation
from data_pipelines.sources import Item, Source

# The paper learned its 320 entries from 10,000 images (arXiv 2408.08459, section 3.1).
VOCAB_SIZE = 320
DOCUMENTS = 10_000


class TokenizerTrainingError(ValueError):
    """No tokenizer could be trained on the sample."""


def train(
    source: Source,
    listed: listing.Listing,
    representation: TokenizedRepresentation,
    *,
    vocab_size: int = VOCAB_SIZE,
    documents: int = DOCUMENTS,
    kind: str = "bpe",
    seed: int = 0,
) -> bytes:
    """Learns a SentencePiece model from the codec bytes of sampled training images.

    Args:
      source: where the images are.
      listed: what is in it; only the split 'train' is sampled.
      representation: one without a trained tokenizer.
      vocab_size: entries of the model, specials among them.
      documents: images to sample; all of them if there are fewer.
      kind: "bpe", over bytes, or "codewords", over the code words of JPEG.
      seed: of the sample.

    Returns:
      The model file. Equal arguments give equal bytes, whatever the number of threads.

    Raises:
      TokenizerTrainingError: not one of the sampled images could be encoded.
      ValueError: the representation has no tokenizer of this kind.
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
    """The items whose seeded key hashes are smallest, by hash; holds no more than are chosen."""
    ranked = (
        (hashlib.sha256(f"{seed}:{item.key}".encode()).digest(), item)
        for name in listed.names("train")
        for item in listing.read(listed.folder, name, listed.facts["listing"][name])
    )
    return [item for _, item in heapq.nsmallest(documents, ranked, key=lambda pair: pair[0])]


def _codec_bytes(
    source: Source, items: list[Item], representation: TokenizedRepresentation
) -> Iterator[bytes]:
    """What each item becomes; unusable ones are passed over here and rejected with the shards."""

    def encode(item: Item) -> list[bytes]:
        found: list[bytes] = []
        try:
            for medium in representation.open(source.read(item.locator)):
                found.append(representation.tokenizer.decode(representation.encode(medium)))
        except ValueError:
            pass  # what came before the damage is as good as any
        return found

    # Pillow and PyAV let go of the interpreter while they work: threads fill the cores.
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for found in pool.map(encode, items):
            yield from found
