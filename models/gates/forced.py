"""Experts that are forced on tokens, in numbers that one asks for: to measure speed alone."""

# S tokens of a group, E experts, C choices per token.

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError
from jscale.models.gates.routing import Routing, check_enough, finite
from jscale.models.gates.topk import TopK

LEVELS = 2**16  # parts of a token's choice that an expert can have
GOLDEN = 40503  # about 0.618 of them, and odd: steps of so many meet all, evenly at any time


@dataclass(frozen=True)
class Forced:
    """Experts by the place of a token in its group alone, weighted by a softmax of their scores.

    All are used equally often, ±1, or with a `skew` expert e about (e + 1)^−skew as often as expert
    0, but none more than once by a token. What the router says changes no load, though it still has
    its gradients: a network learns nothing of use in this way.

    Raises:
        ConfigError: a number below 1, or a skew that is negative or not finite.
    """

    choices: int = 2  # experts of a token
    skew: float = 0.0  # exponent of Zipf's law; 0: even

    def __post_init__(self) -> None:
        if self.choices < 1:
            raise ConfigError(f"Forced.choices must be at least 1, not {self.choices}")
        if not 0 <= self.skew < math.inf:
            raise ConfigError(f"Forced.skew must be finite and not negative, not {self.skew}")

    @property
    def alone(self) -> bool:
        """The place in the group says all."""
        return False

    @property
    def corrected(self) -> bool:
        """Scores choose nobody."""
        return False

    @property
    def warning(self) -> str:
        """That this is no training."""
        how = f"by Zipf's law with exponent {self.skew:g}" if self.skew else "evenly"
        return (
            f"experts are forced on tokens {how}, whatever the router says ({self!r}): for"
            " benchmarks only, what is trained so is worth nothing"
        )

    def check(self, experts: int) -> None:
        """Raises ConfigError unless so many experts can be chosen from."""
        check_enough(self, experts)

    def draws(self, tokens: int, experts: int) -> None:
        """Nothing is drawn."""
        return None

    def __call__(
        self,
        scores: Float[Array, "S E"],
        real: Bool[Array, " S"],
        *,
        training: bool,
        uniforms: Array | None = None,
    ) -> Routing:
        """The experts of the tokens of one group."""
        place = jnp.maximum(jnp.cumsum(real) - 1, 0)  # among those that are routed
        index = self._zipf(place, scores.shape[1]) if self.skew else self._even(place, scores)
        by = TopK(self.choices, "softmax_of_chosen")
        return by.given(finite(scores), real, index)

    def _even(self, place: Int[Array, " S"], scores: Float[Array, "S E"]) -> Int[Array, "S C"]:
        """One choice after the other goes to the next expert, of an order that spreads a token's.

        The experts of a token are far from each other, as if on several devices.
        """
        experts, each = scores.shape[1], np.arange(scores.shape[1])
        order = np.empty(experts, np.int32)
        order[np.lexsort((each // self.choices, each % self.choices))] = each
        turn = place[:, None] % experts * self.choices + jnp.arange(self.choices)
        return jnp.asarray(order)[turn % experts]

    def _zipf(self, place: Int[Array, " S"], experts: int) -> Int[Array, "S C"]:
        """Where C evenly spaced marks fall on a line that experts share as they should be used."""
        ends = np.rint(np.cumsum(quotas(experts, self.choices, self.skew)) * LEVELS)
        ends[-1] = self.choices * LEVELS
        start = place.astype(jnp.uint32) * jnp.uint32(GOLDEN) % LEVELS
        marks = start.astype(jnp.int32)[:, None] + LEVELS * jnp.arange(self.choices)
        return jnp.searchsorted(jnp.asarray(ends, jnp.int32), marks, side="right")


def quotas(experts: int, choices: int, skew: float) -> np.ndarray:
    """How often a token is to use each expert: by Zipf's law, but at most once; `choices` in all.

    >>> quotas(4, 2, 1.0).round(3).tolist()
    [0.96, 0.48, 0.32, 0.24]
    >>> quotas(4, 2, 3.0).round(3).tolist()
    [1.0, 0.704, 0.208, 0.088]
    """
    for full in range(choices):  # experts that every token has: the first, as the law is falling
        law = ((full + 1) / np.arange(full + 1.0, experts + 1)) ** skew
        rest = law * (choices - full) / law.sum()
        if rest[0] <= 1:
            return np.concatenate([np.ones(full), rest])
    raise AssertionError("one choice alone is never more than one")
