"""What every choice of experts takes and gives, and the parts that all of them share."""

# S tokens of a group, E experts, C choices per token.

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError
from jscale.models.gates.balance import Reports, balance_loss
from jscale.models.gates.capacity import Capacity


class Routing(NamedTuple):
    """The experts of each token, E where there is none, their weights, and what they come from.

    `asked` are those that a token would go to if every expert had room for it, E where there is
    none; `gates` its probabilities over experts, which sum to 1, and `counted` the choices that
    balancing counts. What is in `reports` carries no gradient.
    """

    experts: Int[Array, "S C"]
    weights: Float[Array, "S C"]
    asked: Int[Array, "S C"]
    gates: Float[Array, "S E"]
    counted: Int[Array, "S K"]
    reports: Reports

    def unevenness(self, real: Bool[Array, " S"]) -> Float[Array, ""]:
        """1 where the tokens that count use experts equally often; it grows as they do not."""
        return balance_loss(self.gates, self.counted, real)


@runtime_checkable
class Choice(Protocol):
    """Who is chosen: a frozen value, and a pure function of the scores of one group of tokens.

    A token has at most `choices` experts; where it is `alone` they do not depend on other tokens.
    `real` is False for padding, which is not routed. `training` chooses the capacity. `uniforms`
    are numbers from 0 to 1 in the shape that `draws` gives; without them nothing is left to chance.
    A `corrected` choice takes `correction=`, a number for each expert, as well.

    It may have more properties: `causal`, False where the experts of a token depend on those after
    it in evaluation too, so that no decoder can have it; `by_token`, True where it is called with
    the numbers of `tokens=` as well; and `warning`, what must be told before it is used.
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


class Wish(NamedTuple):
    """Who a token would go to, whether it wants to, and whether it can."""

    index: Int[Array, "S C"]
    wanted: Bool[Array, "S C"]
    kept: Bool[Array, "S C"]


def routed(
    wish: Wish,
    weights: Float[Array, "S C"],
    gates: Float[Array, "S E"],
    reports: Reports,
    counted: Int[Array, "S K"] | None = None,
) -> Routing:
    """The routing where only what is kept goes to an expert and has a weight.

    Balancing counts all choices, unless it is given those that it should.
    """
    index, nobody = wish.index.astype(jnp.int32), gates.shape[1]
    told = jax.tree.map(jax.lax.stop_gradient, reports)
    return Routing(
        experts=jnp.where(wish.kept, index, nobody),
        weights=jnp.where(wish.kept, weights, 0.0),
        asked=jnp.where(wish.wanted, index, nobody),
        gates=gates,
        counted=index if counted is None else counted,
        reports=told,
    )


def check_enough(choice: Choice, experts: int) -> None:
    """Raises ConfigError unless there are as many experts as a token has."""
    if experts < choice.choices:
        raise ConfigError(
            f"{type(choice).__name__} gives each token {choice.choices} experts and there are"
            f" {experts}: set experts to at least {choice.choices}, or choose by Top1()"
        )


def check_stack(choice: Choice, decodes: bool) -> None:
    """Raises ConfigError if it chooses by later tokens, and stands in a decoder."""
    if decodes and not getattr(choice, "causal", True):
        raise ConfigError(
            f"{choice!r} chooses the experts of a token by those after it, which a decoder must not"
            " know: it is for encoders; choose by TopK() here"
        )


def warning_of(choice: Choice) -> str | None:
    """What must be told before it is used, if anything."""
    return getattr(choice, "warning", None)


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
