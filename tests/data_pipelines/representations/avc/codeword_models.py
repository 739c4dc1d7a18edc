"""Tokenizers of code words for tests, trained on clips of noise; each once in a process."""

import functools
import tempfile

from data_pipelines.representations import make
from tests.data_pipelines.representations.avc.mutations import noise

OPTIONS = dict(size=(32, 32), frames=4, slice_mbs=0)


@functools.cache
def model(vocab_size=700):
    """A SentencePiece model over the code words of small clips."""
    representation = make("avc", tokenizer="codewords", **OPTIONS)
    documents = [noise(representation, seed) for seed in range(12)]
    return representation.train_tokenizer(documents, vocab_size, "codewords")


@functools.cache
def path(vocab_size=700):
    """The file of the same."""
    with tempfile.NamedTemporaryFile(suffix=".model", delete=False) as file:
        file.write(model(vocab_size))
    return file.name
