"""What every choice of experts takes and gives, and the parts that all of them share."""

# S tokens of a group, E experts, C choices per token.

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError
from jscale.models.gates.balance import Reports
from jscale.models.gates.capacity import Capacity


class Routing(NamedTuple):
    """The experts of each token, E where there is none, their weights, and how even it is.

    `loss` is 1 where experts are chosen equally often, and grows as they are not; what is in
    `reports` carries no gradient.
    """

    experts: Int[Array, "S C"]
    weights: Float[Array, "S C"]
    loss: Float[Array, ""]
    reports: Reports


@runtime_checkable
class Choice(Protocol):
    """Who is chosen: a frozen value, and a pure function of the scores of one group of tokens.

    A token has at most `choices` experts; where it is `alone` they do not depend on other tokens.
    `real` is False for padding, which is not routed. `training` chooses the capacity. `uniforms`
    are numbers from 0 to 1 in the shape that `draws` gives; without them nothing is left to chance.
    A `corrected` choice takes `correction=`, a number for each expert, as well.
    """

    @property
    def choices(self) -> int: ...

    @property
    def alone(self) -> bool: ...

    @property
    def corrected(self) -> bool: ...

    def check(self, experts: int) -> None:
        """Raises ConfigError unless so many experts can be chosen from."""
        ...

    def draws(self, tokens: int, experts: int) -> tuple[int, ...] | None: ...

    def __call__(
        self, scores: Array, real: Array, *, training: bool, uniforms: Array | None = None
    ) -> Routing: ...


def finite(scores: Float[Array, "S E"]) -> Float[Array, "S E"]:
    """Scores in float32, the lowest finite one of the group in place of those that are not."""
    scores = scores.astype(jnp.float32)
    ok = jnp.isfinite(scores)
    least = jnp.where(ok, scores, jnp.inf).min(initial=jnp.inf)
    return jnp.where(ok, scores, jnp.where(jnp.isfinite(least), least, 0.0))


def slots(capacity: Capacity | None, scores: Float[Array, "S E"], choices: int) -> int | None:
    """The slots of each expert; None: as many as are wanted."""
    tokens, experts = scores.shape
    return None if capacity is None else capacity.slots(tokens, experts, choices)


def routed(
    index: Int[Array, "S C"],
    kept: Bool[Array, "S C"],
    weights: Float[Array, "S C"],
    experts: int,
    loss: Float[Array, ""],
    reports: Reports,
) -> Routing:
    """The routing where only what is kept goes to an expert and has a weight."""
    nobody = jnp.where(kept, index.astype(jnp.int32), experts)
    told = jax.tree.map(jax.lax.stop_gradient, reports)
    return Routing(nobody, jnp.where(kept, weights, 0.0), loss, told)


def check_enough(choice: Choice, experts: int) -> None:
    """Raises ConfigError unless there are as many experts as a token has."""
    if experts < choice.choices:
        raise ConfigError(
            f"{type(choice).__name__} gives each token {choice.choices} experts and there are"
            f" {experts}: set experts to at least {choice.choices}, or choose by Top1()"
        )


def check_capacity(owner: Any, *names: str) -> None:
    """The fields are capacities or None.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        value = getattr(owner, name)
        if value is not None and not isinstance(value, Capacity):
            raise ConfigError(
                f"{type(owner).__name__}.{name} must be a capacity such as Even(1.0) or"
                f" Share(0.25), or None for no bound, not {value!r}"
            )
