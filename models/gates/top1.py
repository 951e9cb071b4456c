"""One expert for each token."""

# S tokens of a group, E experts.

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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


@dataclass(frozen=True)
class Top1:
    """The most probable expert, weighted by its probability.

    Source: Fedus et al. 2021, Switch Transformer, arXiv 2101.03961.

    Raises:
        ConfigError: a capacity that is none.
    """

    training: Capacity | None = Even()  # slots of an expert in training; None: no bound
    evaluation: Capacity | None = None  # in evaluation: with a bound, tokens depend on others
    prioritised: bool = False  # whether the most certain tokens of a group get slots first

    def __post_init__(self) -> None:
        check_capacity(self, "training", "evaluation")

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
        """One expert."""
        return 1

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
        scores = finite(scores)
        gates, experts = jax.nn.softmax(scores), scores.shape[1]
        first = jnp.argmax(gates, 1)
        index, wanted = first[:, None], real[:, None]
        room = slots(self.training if training else self.evaluation, scores, 1)
        priority = gates.max(1) if self.prioritised else None
        kept = within(index, wanted, experts, room, priority)
        reports = {
            "gate_entropy": balance.entropy(gates, real),
            **balance.usage("first", first, real, experts),
            **balance.overflow("first", real, kept[:, 0]),
        }
        weights = jnp.take_along_axis(gates, index, 1)
        return routed(Wish(index, wanted, kept), weights, gates, reports)
