"""Models and weights that both sides of the comparison can make, from NumPy alone."""

import zlib

import numpy as np

_COMMON = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 12,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
CASES = {
    "plain": _COMMON,
    "grouped": {**_COMMON, "num_key_value_heads": 2},
    "tied": {**_COMMON, "tie_word_embeddings": True},
}
TOKENS = np.random.RandomState(7).randint(0, 61, (2, 40))


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of this name in `transformers`' naming, float32."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    centre, spread = (1.0, 0.2) if "norm" in name else (0.0, 1.5 * shape[-1] ** -0.5)
    return (centre + spread * random.randn(*shape)).astype(np.float32)
