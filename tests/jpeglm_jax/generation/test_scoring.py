"""Log-likelihoods of documents of any length, in windows."""

import jax
import numpy as np
import pytest
from flax import nnx

from jpeglm_jax.generation.scoring import Scorer, windows
from tests.evals.models import untrained


def one_by_one(model, length=80, stride=80):
    """(start token, tokens) -> log-likelihood, window by window, each in a separate row."""
    graph, eos = model.spec.graph, model.representation.eos

    @jax.jit
    def log_probs(row):
        positions = np.arange(length)[None]
        return jax.nn.log_softmax(
            nnx.merge(graph, model.params)(row[None], np.ones_like(positions), positions)[0]
        )

    def likelihood(start_token, tokens):
        framed = np.concatenate([[start_token], tokens, [eos]]).astype(np.int32)
        total, target, start = 0.0, 1, 0
        while target < len(framed):
            row = np.zeros(length, np.int32)  # later tokens do not change a prediction
            part = framed[start : start + length]
            row[: len(part)] = part
            found = np.asarray(log_probs(row))
            while target < len(framed) and target <= start + length:
                total += float(found[target - 1 - start, framed[target]])
                target += 1
            start += stride
        return total

    return likelihood


@pytest.mark.parametrize(
    ("num_positions", "seq_len", "stride"),
    [(1, 8, 4), (8, 8, 4), (9, 8, 4), (50, 8, 3), (50, 8, 8)],
)
def test_windows_predict_each_position_once_with_full_context(num_positions, seq_len, stride):
    found = list(windows(num_positions, seq_len, stride))
    counted = [
        position
        for window in found
        for position in range(window.start + window.context, window.start + window.length)
    ]
    assert counted == list(range(num_positions))
    assert found[0].context == 0 and all(window.length <= seq_len for window in found)
    assert all(window.context == seq_len - stride for window in found[1:])


@pytest.mark.parametrize("devices", [1, 8])
def test_documents_of_all_lengths_have_the_likelihood_of_the_definition(devices):
    model = untrained(seq_len=24, devices=devices)
    rng = np.random.default_rng(0)
    documents = [(256, rng.integers(0, 256, size).astype(np.uint16)) for size in (5, 23, 0, 9, 60)]
    found = list(Scorer(model, batch_size=2, stride=10)(documents))
    exact = one_by_one(model, length=24, stride=10)
    wanted = [exact(*document) for document in documents]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    again = list(Scorer(model, batch_size=4, stride=10)(documents[::-1]))
    np.testing.assert_allclose(again[::-1], found, rtol=1e-5)
