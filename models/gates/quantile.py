"""An expert's price is the score at which it has had its even share of tokens."""

# S tokens of a group, E experts.

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jscale.errors import ConfigError
from jscale.models.gates.priced import Priced, share


@dataclass(frozen=True)
class Quantile(Priced):
    """In training, the best experts by score less price, β, which makes all equally sought.

    By turns, α is what a token would gain by one expert more than it has: the best of scores less β
    that is not chosen; and β of an expert is the quantile of its scores less α above which lie as
    many tokens as its even share. That is repeated in each group and nothing is kept from step to
    step. In evaluation, which must not know later tokens, β is 0. Source: Megatron Core's quantile
    balancing, which keeps a moving average of β.

    Raises:
        ConfigError: as `Priced` says, a number of rounds below 1, or all experts for each token.
    """

    rounds: int = 4  # how often prices are found from gains and gains from prices

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ConfigError(f"Quantile.rounds must be at least 1, not {self.rounds}")

    def check(self, experts: int) -> None:
        """Raises ConfigError unless there are more experts than a token has."""
        super().check(experts)
        if experts == self.choices:
            raise ConfigError(
                f"Quantile gives each token all {experts} experts, so that there is nothing to make"
                " even: set more experts, or choose by TopK()"
            )

    def prices(self, scores: Float[Array, "S E"], real: Bool[Array, " S"]) -> Float[Array, " E"]:
        """β after all rounds, from 0."""
        with jax.named_scope("quantile"):
            first = jnp.zeros(scores.shape[1])
            return lax.fori_loop(0, self.rounds, lambda _, b: self.dearer(scores, real, b), first)

    def dearer(
        self, scores: Float[Array, "S E"], real: Bool[Array, " S"], prices: Float[Array, " E"]
    ) -> Float[Array, " E"]:
        """β after one round more."""
        least = lax.top_k(scores - prices, self.choices + 1)[0][:, -1:]
        gains = jnp.where(real[:, None], scores - least, -jnp.inf)
        return above(gains, share(self.choices, scores.shape[1], real), real)


def above(
    x: Float[Array, "S E"], count: Float[Array, ""], real: Bool[Array, " S"]
) -> Float[Array, " E"]:
    """For each column the number that `count` of its true values are above; 0 if it has none.

    It lies between the last of these and the next; between whole counts it is interpolated.
    """
    falling = jnp.sort(x, axis=0, descending=True)
    place = jnp.clip(count - 0.5, 0.0, jnp.maximum(real.sum() - 1, 0))
    before = jnp.floor(place).astype(jnp.int32)
    take = lambda i: lax.dynamic_index_in_dim(falling, jnp.minimum(i, x.shape[0] - 1), 0, False)
    part = place - before
    after = jnp.where(part > 0, take(before + 1), 0.0)
    found = (1 - part) * take(before) + part * after
    return jnp.where(real.any(), found, 0.0)
