"""How many tokens of a group an expert takes, and who is left out when there are more.

Source: Lepikhin et al. 2020, GShard, arXiv 2006.16668; with priorities Riquelme et al. 2021,
arXiv 2106.05974.
"""

# S tokens of a group, E experts, C choices per token.

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError


@runtime_checkable
class Capacity(Protocol):
    """How many choices of a group an expert takes."""

    def slots(self, tokens: int, experts: int, choices: int) -> int: ...


@dataclass(frozen=True)
class Even:
    """`factor` times an even share: ⌊factor · choices · ⌈tokens / experts⌉⌋.

    Raises:
        ConfigError: a factor that is negative or not finite.
    """

    factor: float = 1.0  # 1: just enough if all experts are chosen equally often

    def __post_init__(self) -> None:
        if not 0 <= self.factor < math.inf:
            raise ConfigError(f"Even.factor must be finite and not negative, not {self.factor}")

    def slots(self, tokens: int, experts: int, choices: int) -> int:
        """The slots of each expert."""
        return int(self.factor * choices * math.ceil(tokens / experts))


@dataclass(frozen=True)
class Share:
    """A share of the group's tokens, whatever the number of experts: ⌈fraction · tokens⌉.

    Raises:
        ConfigError: a fraction that is not from 0 to 1.
    """

    fraction: float = 0.25  # of the tokens of a group; 1: nothing is ever dropped

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"Share.fraction must be from 0 to 1, not {self.fraction}")

    def slots(self, tokens: int, experts: int, choices: int) -> int:
        """The slots of each expert."""
        return math.ceil(self.fraction * tokens)


def within(
    index: Int[Array, "S C"],
    wanted: Bool[Array, "S C"],
    experts: int,
    slots: int | None,
    priority: Float[Array, " S"] | None = None,
) -> Bool[Array, "S C"]:
    """Which of the wanted choices find a slot; all of them if `slots` is None.

    An expert's slots go to first choices in the order of tokens, or of falling priority, and then
    to second choices, which count from all first choices, also those that found no slot.
    """
    if slots is None:
        return wanted
    order = None if priority is None else jnp.argsort(-priority, stable=True)
    kept, before = [], jnp.zeros(experts, jnp.int32)
    for choice in range(index.shape[1]):
        mine = wanted[:, choice]
        chosen = jax.nn.one_hot(index[:, choice], experts, dtype=jnp.int32)
        hit = jnp.where(mine[:, None], chosen, 0)
        lined = hit if order is None else hit[order]
        place = ((jnp.cumsum(lined, 0) - 1 + before) * lined).sum(1)
        if order is not None:
            place = jnp.zeros_like(place).at[order].set(place, unique_indices=True)
        kept.append(mine & (place < slots))
        before += hit.sum(0)
    return jnp.stack(kept, 1)
