"""Tokenizers of code words for tests, trained on synthetic images; each once in a process."""

import functools
import tempfile

from data_pipelines.representations import make
from tests.data_pipelines.representations.jpeg.mutations import synthetic


@functools.cache
def model(mode="RGB", vocab_size=1100, restart_interval=1):
    """A SentencePiece model over the code words of small images."""
    representation = make("jpeg", size=48, mode=mode, restart_interval=restart_interval)
    documents = [
        representation.tokenizer.decode(representation.encode(synthetic(60, 50, seed, mode)))
        for seed in range(60)
    ]
    return representation.train_tokenizer(documents, vocab_size, "codewords")


@functools.cache
def path(mode="RGB", vocab_size=1100, restart_interval=1):
    """The file of the same."""
    with tempfile.NamedTemporaryFile(suffix=".model", delete=False) as file:
        file.write(model(mode, vocab_size, restart_interval))
    return file.name


def trained(mode="RGB", vocab_size=1100, restart_interval=1, **options):
    """A representation with such a tokenizer."""
    spec = path(mode, vocab_size, restart_interval)
    return make("jpeg", mode=mode, restart_interval=restart_interval, tokenizer=spec, **options)
