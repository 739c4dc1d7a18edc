"""Sampling parameters, sampling of one token from logits, and the sampled document.

The engine applies them at every step; a job writes the documents.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How a token is sampled from logits.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: sample among the k most likely tokens; 0: among all.
      top_p: sample among the most likely tokens that together reach this probability; 1: among
        all (Holtzman et al. 2020).
      min_p: sample among tokens with at least this part of the probability of the most likely
        one; 0: among all (Nguyen et al. 2024).
      guidance: classifier-free guidance (Ho and Salimans 2022) of a label-conditional model:
        the unconditional logits plus this many times the difference that the label makes. 1 is
        no guidance; any other value doubles the rows of a step.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 1 or more, or 0 for no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected more than 0 and at most 1")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; expected 0 or more and less than 1")
        if self.guidance < 0:
            raise ValueError(f"guidance is {self.guidance}; expected 0 or more, 1 for none")

    @classmethod
    def from_config(cls, config: ConfigDict) -> SamplingParams:
        """From `config.sample`."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})

    def __call__(self, logits_BxV: jax.Array) -> jax.Array:
        """float32 [B, V] -> logits to sample from; a token that is filtered out has -inf."""
        logits = logits_BxV.astype(jnp.float32)
        if self.temperature == 0:
            best = logits == jnp.max(logits, axis=-1, keepdims=True)
            return jnp.where(best, 0.0, -jnp.inf)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            threshold = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < threshold, -jnp.inf, logits)
        if self.top_p < 1:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            probs = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probs, axis=-1) - probs
            # The most likely token is always kept: the probability before it is 0.
            threshold = jnp.min(jnp.where(before < self.top_p, ordered, jnp.inf), axis=-1)
            logits = jnp.where(logits < threshold[:, None], -jnp.inf, logits)
        if self.min_p > 0:
            threshold = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(self.min_p)
            logits = jnp.where(logits < threshold, -jnp.inf, logits)
        return logits


def sample_token(keys_B: jax.Array, logits_BxV: jax.Array) -> jax.Array:
    """Samples one token per row, int32 [B], by inverting the cumulative distribution.

    It takes one random number per row; Gumbel noise would take one per entry. A token with a logit
    of -inf is never sampled.

    Args:
      keys_B: random keys.
      logits_BxV: float32, not normalised.
    """
    max_Bx1 = jnp.max(logits_BxV, axis=-1, keepdims=True)
    cumulative_BxV = jnp.cumsum(jnp.exp(logits_BxV - max_Bx1), axis=-1)
    uniform_B = jax.vmap(jax.random.uniform)(keys_B)
    # uniform < 1, and a product with the sum stays below the sum in float32 too.
    threshold_Bx1 = uniform_B[:, None] * cumulative_BxV[:, -1:]
    return jnp.argmax(cumulative_BxV > threshold_Bx1, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sampled document.

    Attributes:
      number: of the document in its job.
      tokens: int32 [n], without start and end.
      complete: it ends with the end token; otherwise at the sequence length.
      log_likelihood: of the sampled tokens (not of the prompt), in nats, under the model itself:
        before temperature, filters, guidance and constraint.
    """

    number: int
    tokens: np.ndarray
    complete: bool
    log_likelihood: float
