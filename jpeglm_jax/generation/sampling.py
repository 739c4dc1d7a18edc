"""Sampling parameters, sampling of one token from logits, and the sampled document.

The engine applies them at every step; a job writes the documents.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

_FLOAT32 = np.finfo(np.float32)


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
        # Comparisons with NaN are false, so each states the range that is allowed.
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}; expected a finite number of 0 or more"
            )
        if not 0 <= self.top_k < math.inf or self.top_k != int(self.top_k):
            raise ValueError(f"top_k is {self.top_k}; expected 1 or more, or 0 for no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected more than 0 and at most 1")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; expected 0 or more and less than 1")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(
                f"guidance is {self.guidance}; expected a finite number of 0 or more, 1 for none"
            )

    @classmethod
    def from_config(cls, config: ConfigDict) -> SamplingParams:
        """From `config.sample`."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})

    def __call__(
        self,
        logits_BxV: jax.Array,
        unconditional_BxV: jax.Array | None = None,
        allowed_BxV: jax.Array | None = None,
    ) -> jax.Array:
        """The logits to sample from.

        Values do not overflow at any temperature or guidance: the max is subtracted before the
        logits are multiplied, so that the most likely token always has 0.

        Args:
          logits_BxV: float [B, V], finite, of the model.
          unconditional_BxV: the same without the label; needed for guidance.
          allowed_BxV: bool [B, V], at least one per row: tokens that may be sampled. None: all.

        Returns:
          float32 [B, V], 0 for the most likely token and -inf for tokens that are filtered out.
        """
        logits, scale = logits_BxV.astype(jnp.float32), 1.0
        if self.guidance != 1:
            if unconditional_BxV is None:
                raise ValueError("guidance needs the logits without a label")
            unconditional = unconditional_BxV.astype(jnp.float32)
            # Divided by the guidance where that is large, so that the sum stays finite.
            scale = max(self.guidance, 1.0)
            difference = logits - unconditional
            logits = unconditional * (1 / scale) + difference * (self.guidance / scale)
        if allowed_BxV is not None:
            logits = jnp.where(allowed_BxV, logits, -jnp.inf)
        logits = logits - jnp.max(logits, axis=-1, keepdims=True)
        if self.temperature == 0:
            return jnp.where(logits == 0, 0.0, -jnp.inf)
        if 0 < self.top_k < logits.shape[-1]:  # the same tokens at any temperature
            threshold = jax.lax.top_k(logits, int(self.top_k))[0][:, -1:]
            logits = jnp.where(logits < threshold, -jnp.inf, logits)
        logits = logits * _divided(scale, self.temperature)
        if self.top_p < 1:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            probs = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probs, axis=-1) - probs
            # The most likely token is always kept: the probability before it is 0.
            kept = (before < self.top_p) | (before == 0)
            threshold = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1)
            logits = jnp.where(logits < threshold[:, None], -jnp.inf, logits)
        if self.min_p > 0:
            logits = jnp.where(logits < math.log(self.min_p), -jnp.inf, logits)
        return logits


def _divided(scale: float, temperature: float) -> float:
    """scale / temperature, within the normal numbers of float32."""
    largest = float(_FLOAT32.max)
    found = min(scale, largest * temperature) / temperature
    return max(found, float(_FLOAT32.tiny))  # 0 times -inf is NaN


def sample_token(keys_B: jax.Array, logits_BxV: jax.Array) -> jax.Array:
    """Samples one token per row, int32 [B], by inverting the cumulative distribution.

    It takes one random number per row; Gumbel noise would take one per entry. A token with a logit
    of -inf is never sampled.

    Args:
      keys_B: random keys.
      logits_BxV: float32, not normalised; at least one per row is finite.
    """
    max_Bx1 = jnp.max(logits_BxV, axis=-1, keepdims=True)
    cumulative_BxV = jnp.cumsum(jnp.exp(logits_BxV - max_Bx1), axis=-1)
    uniform_B = jax.vmap(jax.random.uniform)(keys_B)
    threshold_Bx1 = uniform_B[:, None] * cumulative_BxV[:, -1:]
    # A parallel sum rounds each entry differently, so it may increase at a token of probability 0
    # and its last entry need not be its largest.
    passed_BxV = (cumulative_BxV > threshold_Bx1) & (logits_BxV > -jnp.inf)
    first_B = _first(passed_BxV)
    likely_B = _first(logits_BxV == max_Bx1)
    return jnp.where(first_B < logits_BxV.shape[-1], first_B, likely_B)


def _first(where_BxV: jax.Array) -> jax.Array:
    """The first position of each row that is true, int32 [B]; V if there is none.

    As `jnp.argmax`, which a CPU computes ten times slower.
    """
    size = where_BxV.shape[-1]
    return jnp.min(jnp.where(where_BxV, jnp.arange(size, dtype=jnp.int32), size), axis=-1)


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
