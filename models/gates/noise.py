"""Noise that makes a router try experts it would not choose, in training alone."""

# B batch, T length, D model size, E experts.

import math
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from jscale.errors import ConfigError
from jscale.models.draws import stream


@dataclass(frozen=True)
class Noise:
    """What a router reads times a number near 1, and what it says plus a normal number.

    Source: Fedus et al. 2021, arXiv 2101.03961 (jitter); Shazeer et al. 2017, arXiv 1701.06538.

    Raises:
        ConfigError: a jitter that is not from 0 to below 1, or a negative deviation.
    """

    jitter: float = 0.0  # the router reads x · U(1 − jitter, 1 + jitter)
    deviation: float = 0.0  # of the normal numbers that are added to scores

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"Noise.jitter must be from 0 to below 1, not {self.jitter}")
        if not 0 <= self.deviation < math.inf:
            raise ConfigError(f"Noise.deviation must not be negative, not {self.deviation}")

    def read(self, x: Float[Array, "B T D"], key: PRNGKeyArray | None) -> Float[Array, "B T D"]:
        """What the router reads; without a key it is x."""
        key = stream(key, "jitter")
        if key is None or not self.jitter:
            return x
        return x * jax.random.uniform(key, x.shape, x.dtype, 1 - self.jitter, 1 + self.jitter)

    def said(
        self, scores: Float[Array, "B T E"], key: PRNGKeyArray | None
    ) -> Float[Array, "B T E"]:
        """What the router says; without a key the scores."""
        key = stream(key, "router noise")
        if key is None or not self.deviation:
            return scores
        return scores + self.deviation * jax.random.normal(key, scores.shape, scores.dtype)
