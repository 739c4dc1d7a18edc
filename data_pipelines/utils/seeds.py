"""The range of random seeds, the same for every command."""

from __future__ import annotations

MAX_SEED = 2**32 - 1  # a JAX key is made of 32 bits: larger seeds would repeat smaller ones


def check_seed(seed: int, name: str = "seed") -> int:
    """The seed itself. Raises ValueError for one outside 0 to 2**32 - 1, naming it `name`."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{name} is {seed}; expected 0 to {MAX_SEED}")
    return seed
