"""How a token is drawn, and what is drawn: filters of logits, guidance, samples."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from logits.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among the k likeliest; 0: among all.
      top_p: draw among the likeliest that together reach this probability; 1: among all
        (Holtzman et al. 2020).
      min_p: draw among those at least this part as likely as the likeliest; 0: among all
        (Nguyen et al. 2024).
      guidance: classifier-free guidance (Ho and Salimans 2022) of a label-conditional model:
        logits are those without the label plus this many times what the label changes. 1 is the
        model as it is; otherwise every step reads each document twice.
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
    def of(cls, config: ConfigDict) -> SamplingParams:
        """From `config.sample`."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})

    def __call__(self, logits_BxV: jax.Array) -> jax.Array:
        """float32 [B, V] -> logits to draw from, where what is filtered out is -inf."""
        logits = logits_BxV.astype(jnp.float32)
        if self.temperature == 0:
            best = logits == jnp.max(logits, axis=-1, keepdims=True)
            return jnp.where(best, 0.0, -jnp.inf)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            probs = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probs, axis=-1) - probs
            # The likeliest is always kept: nothing comes before it.
            least = jnp.min(jnp.where(before < self.top_p, ordered, jnp.inf), axis=-1)
            logits = jnp.where(logits < least[:, None], -jnp.inf, logits)
        if self.min_p > 0:
            least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(self.min_p)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return logits


def sample_token(keys_B: jax.Array, logits_BxV: jax.Array) -> jax.Array:
    """One token a row, int32 [B], by the inverse of the cumulated probabilities.

    One random number a row, where Gumbel noise would take one an entry. What has a logit of -inf
    is never drawn.
    """
    likeliest_Bx1 = jnp.max(logits_BxV, axis=-1, keepdims=True)
    cumulated_BxV = jnp.cumsum(jnp.exp(logits_BxV - likeliest_Bx1), axis=-1)
    uniform_B = jax.vmap(jax.random.uniform)(keys_B)
    # uniform < 1, and a product with the sum stays below the sum in float32 too.
    threshold_Bx1 = uniform_B[:, None] * cumulated_BxV[:, -1:]
    return jnp.argmax(cumulated_BxV > threshold_Bx1, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One drawn document.

    Attributes:
      number: which of those asked for.
      tokens: uint16 [n], without start and end.
      complete: the model wrote the end itself; otherwise the length limit cut it off.
      log_likelihood: of what was drawn (the prompt's tokens aside), in nats, under the model as
        it is: before temperature, filters, guidance and constraints.
    """

    number: int
    tokens: np.ndarray
    complete: bool
    log_likelihood: float
