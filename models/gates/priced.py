"""Choices that, in training, put a price on each expert by which a whole group is routed evenly.

The price is found anew in each group of tokens, from all of them, and is taken from its score for
the choice alone: weights are those of a `TopK`, and so is evaluation. No gradient goes through it.
"""

# S tokens of a group, E experts, C choices per token.

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jscale.errors import ConfigError
from jscale.models.gates.routing import Routing, finite
from jscale.models.gates.topk import TopK


@dataclass(frozen=True)
class Priced:
    """What such choices share; `prices` is their own.

    Raises:
        ConfigError: a choice to go by that is no `TopK`, or has a limit or a correction.
    """

    by: TopK = TopK()  # how many are chosen, and with what weight; all there is in evaluation

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if not isinstance(self.by, TopK):
            raise ConfigError(f"{kind}.by must be a TopK(…), not {self.by!r}")
        if self.by.corrected or self.by.limit is not None:
            raise ConfigError(
                f"{kind}.by goes by scores and prices alone: it must not be corrected, nor have a"
                f" limit; it is {self.by!r}"
            )

    @property
    def choices(self) -> int:
        """The experts of a token."""
        return self.by.choices

    @property
    def alone(self) -> bool:
        """In training all tokens of a group make the prices."""
        return False

    @property
    def corrected(self) -> bool:
        """Nothing is kept from step to step."""
        return False

    def check(self, experts: int) -> None:
        """Raises ConfigError unless so many experts can be chosen from."""
        self.by.check(experts)

    def draws(self, tokens: int, experts: int) -> None:
        """Nothing is drawn."""
        return None

    def prices(self, scores: Float[Array, "S E"], real: Bool[Array, " S"]) -> Float[Array, " E"]:
        """What is taken from the score of each expert; padding has no say in it."""
        raise NotImplementedError

    def __call__(
        self,
        scores: Float[Array, "S E"],
        real: Bool[Array, " S"],
        *,
        training: bool,
        uniforms: Array | None = None,
    ) -> Routing:
        """The experts of the tokens of one group."""
        scores = finite(scores)
        if not training or not scores.shape[0]:
            return self.by(scores, real, training=False)
        fixed = lax.stop_gradient(scores)
        index = lax.top_k(fixed - self.prices(fixed, real), self.choices)[1]
        return self.by.given(scores, real, index)


def share(choices: int, experts: int, real: Bool[Array, " S"]) -> Float[Array, ""]:
    """How many tokens an expert has where use is even; not always a whole number."""
    return real.sum().astype(jnp.float32) * choices / experts
