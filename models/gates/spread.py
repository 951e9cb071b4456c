"""A token's experts spread evenly over groups, as they stand on devices that share them."""

# S tokens of a group, E experts, N groups of M experts.

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jscale.errors import ConfigError


@dataclass(frozen=True)
class PerGroup:
    """As many experts of each of so many groups: each device that holds one has equal work.

    Source: Pangu Team 2025, Pangu Pro MoE, arXiv 2505.21411.

    Raises:
        ConfigError: a number below 1.
    """

    groups: int  # of experts, one after the other: as many as devices that share them, say

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ConfigError(f"PerGroup.groups must be at least 1, not {self.groups}")

    def check(self, experts: int, choices: int) -> None:
        """Raises ConfigError unless experts make these groups, and a token's are equally many."""
        size = group_size(experts, self.groups)
        if choices % self.groups:
            raise ConfigError(
                f"a token has {choices} experts, which must be a multiple of the {self.groups}"
                " groups of PerGroup"
            )
        if choices // self.groups > size:
            raise ConfigError(
                f"PerGroup({self.groups}) takes {choices // self.groups} experts of each group,"
                f" and a group has {size}"
            )

    def __call__(self, ranked: Float[Array, "S E"], choices: int) -> Float[Array, "S E"]:
        """What experts are chosen by, -inf but for the best of each group."""
        grouped = grouped_by(ranked, self.groups)
        best = among_best(grouped, choices // self.groups)
        return jnp.where(best, grouped, -jnp.inf).reshape(ranked.shape)


def group_size(experts: int, groups: int) -> int:
    """The experts of a group.

    Raises:
        ConfigError: groups would not be equal.
    """
    if experts % groups:
        raise ConfigError(f"{experts} experts cannot be {groups} equal groups")
    return experts // groups


def grouped_by(x: Float[Array, "S E"], groups: int) -> Float[Array, "S N M"]:
    """A row for each group of experts."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups)


def among_best(x: Float[Array, "*S E"], count: int) -> Bool[Array, "*S E"]:
    """Which are the `count` largest of the last axis; of equal ones the first."""
    best = lax.top_k(x, count)[1]
    return (best[..., None] == jnp.arange(x.shape[-1])).any(-2)
