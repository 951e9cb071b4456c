"""Experts choose their tokens, all equally many."""

# S tokens of a group, E experts, C choices per token.

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jscale.errors import ConfigError
from jscale.models.gates import balance
from jscale.models.gates.capacity import Even
from jscale.models.gates.routing import Routing, finite

NEAR = 1e-6  # of a whole number of tokens counts as one: 0.1 · 30 is 3


@dataclass(frozen=True)
class ExpertChoice:
    """Each expert takes the ⌈factor · tokens / experts⌉ tokens to which it is most probable.

    Their results are weighted by these probabilities. A token has `factor` experts in the mean, any
    number from none to `most`: where more take it, it goes to those most probable to it, and the
    others are counted as dropped. Use is even by itself, so that its loss has no gradient. An
    expert compares a token with those after it, also in evaluation: for encoders alone. Source:
    Zhou et al. 2022, arXiv 2202.09368.

    Raises:
        ConfigError: a factor that is not positive and finite, or a bound below 1.
    """

    factor: float = 2.0  # experts of a token in the mean
    most: int = 8  # experts that a token can have

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ConfigError(f"ExpertChoice.factor must be positive, not {self.factor}")
        if self.most < 1:
            raise ConfigError(f"ExpertChoice.most must be at least 1, not {self.most}")

    @property
    def choices(self) -> int:
        """The experts that a token can have."""
        return self.most

    @property
    def alone(self) -> bool:
        """Tokens compete for experts."""
        return False

    @property
    def causal(self) -> bool:
        """A later token may take an expert from an earlier one."""
        return False

    @property
    def corrected(self) -> bool:
        """Experts choose by scores."""
        return False

    @property
    def evaluation(self) -> Even:
        """In evaluation an expert takes as many as in training, so groups are the same ones."""
        return Even(self.factor)

    def check(self, experts: int) -> None:
        """Raises ConfigError unless a token needs no more experts than there are."""
        for name in ("factor", "most"):
            if getattr(self, name) > experts:
                raise ConfigError(
                    f"ExpertChoice.{name} must be at most the {experts} experts that there are,"
                    f" not {getattr(self, name)}"
                )

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
        """The experts of the tokens of one group; `asked` are all that take a token."""
        gates = jax.nn.softmax(finite(scores))
        experts = gates.shape[1]
        taken = self.taken(gates, real)
        weights, index = lax.top_k(jnp.where(taken, gates, -1.0), self.most)
        kept = jnp.take_along_axis(taken, index, 1)
        everyone = jnp.broadcast_to(jnp.arange(experts), gates.shape)
        lost = 100 * (1 - kept.sum() / jnp.maximum(taken.sum(), 1))
        nobody = real & ~taken.any(1)
        reports = {
            "gate_entropy": balance.entropy(gates, real),
            "chosen_overflow": jnp.where(taken.any(), lost, 0.0),
            "untaken": 100 * nobody.sum() / jnp.maximum(real.sum(), 1),
        }
        return Routing(
            experts=jnp.where(kept, index, experts),
            weights=jnp.where(kept, weights, 0.0),
            asked=jnp.where(taken, everyone, experts),
            gates=gates,
            counted=everyone,  # each expert is chosen as often as any other
            reports=jax.tree.map(lax.stop_gradient, reports),
        )

    def taken(self, gates: Float[Array, "S E"], real: Bool[Array, " S"]) -> Bool[Array, "S E"]:
        """Which tokens each expert takes; of equal ones the first."""
        tokens = real.sum()
        even = jnp.ceil(self.factor * tokens / gates.shape[1] - NEAR).astype(jnp.int32)
        order = jnp.argsort(jnp.where(real[:, None], gates, -1.0), axis=0, descending=True)
        place = jnp.argsort(order, axis=0)
        return place < jnp.minimum(even, tokens)
