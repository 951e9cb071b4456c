"""Two experts for each token."""

# S tokens of a group, E experts.

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jscale.errors import ConfigError, did_you_mean
from jscale.models.gates import balance
from jscale.models.gates.capacity import Capacity, Even, within
from jscale.models.gates.routing import (
    Routing,
    Wish,
    check_capacity,
    check_enough,
    finite,
    routed,
    slots,
)
from jscale.models.gates.second import ByWeight, Second

MOMENTS = ("before", "after")


@dataclass(frozen=True)
class Top2:
    """The most probable expert and a second one, weighted by their probabilities over their sum.

    Source: Lepikhin et al. 2020, GShard, arXiv 2006.16668.

    Raises:
        ConfigError: a policy or a capacity that is none.
    """

    second: Second = ByWeight()  # who the second is, and whether there is one
    training: Capacity | None = Even()  # slots of an expert in training; None: no bound
    evaluation: Capacity | None = None  # in evaluation: with a bound, tokens depend on others
    normalise: str = "after"  # when the two weights are made to sum to 1: before or after dropping
    prioritised: bool = False  # whether the most certain tokens of a group get slots first

    def __post_init__(self) -> None:
        check_capacity(self, "training", "evaluation")
        if self.normalise not in MOMENTS:
            hint = did_you_mean(self.normalise, MOMENTS)
            raise ConfigError(f"no moment {self.normalise!r} for Top2.normalise; {hint}")
        if not isinstance(self.second, Second):
            raise ConfigError(
                f"Top2.second must be Always(), Sampled() or ByWeight(), not {self.second!r}"
            )

    @property
    def alone(self) -> bool:
        """A full expert takes no more tokens."""
        return False

    @property
    def corrected(self) -> bool:
        """Experts are chosen by their scores."""
        return False

    @property
    def choices(self) -> int:
        """The first and the second."""
        return 2

    def check(self, experts: int) -> None:
        """Raises ConfigError unless so many experts can be chosen from."""
        check_enough(self, experts)

    def draws(self, tokens: int, experts: int) -> tuple[int, ...] | None:
        """What the policy draws for one group."""
        return self.second.uniforms(tokens, experts)

    def __call__(
        self,
        scores: Float[Array, "S E"],
        real: Bool[Array, " S"],
        *,
        training: bool,
        uniforms: Array | None = None,
    ) -> Routing:
        """The experts of the tokens of one group.

        Raises:
            ConfigError: there are not two experts.
        """
        scores = finite(scores)
        gates, experts = jax.nn.softmax(scores), scores.shape[1]
        if experts < 2:
            raise ConfigError("Top2 chooses two experts and has the scores of one: set Top1()")
        first = jnp.argmax(gates, 1)
        ranked = self.second.ranked(scores, uniforms)
        others = jnp.where(jnp.arange(experts) == first[:, None], -jnp.inf, ranked)
        index = jnp.stack([first, jnp.argmax(others, 1)], 1)
        weights = jnp.take_along_axis(gates, index, 1)
        before = self.normalise == "before"
        weights = _to_one(weights) if before else weights
        wanted = jnp.stack([real, real & self.second.wanted(weights[:, 1], uniforms)], 1)
        room = slots(self.training if training else self.evaluation, scores, 2)
        priority = gates.max(1) if self.prioritised else None
        kept = within(index, wanted, experts, room, priority)
        weights = weights if before else _to_one(jnp.where(kept, weights, 0.0))
        reports = {"gate_entropy": balance.entropy(gates, real)}
        for choice, name in enumerate(("first", "second")):
            reports |= balance.usage(name, index[:, choice], real, experts)
            reports |= balance.overflow(name, wanted[:, choice], kept[:, choice])
        return routed(Wish(index, wanted, kept), weights, gates, reports, first[:, None])


def _to_one(weights: Float[Array, "S 2"]) -> Float[Array, "S 2"]:
    return weights / jnp.maximum(weights.sum(1, keepdims=True), balance.EPS)
