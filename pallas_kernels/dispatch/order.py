"""Rows in the order of their experts, and back: both directions are gathers, also as gradients.

A scatter would be the plain gradient of a gather; but here each row's places are known both ways.
"""

# T tokens, C choices per token, E experts, M rows, D their size.

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError
from jscale.pallas_kernels.grouped_matmul.rows import taken


class Order(NamedTuple):
    """Choices sorted by expert, earlier tokens first.

    `origin` is the choice t·C + c that each row comes from, T·C where it is none; `place` the row
    of each choice, M where it has none; `sizes` the rows of each expert, one after another.
    """

    origin: Int[Array, " M"]
    place: Int[Array, "T C"]
    sizes: Int[Array, " E"]

    @property
    def token(self) -> Int[Array, " M"]:
        """The token of each row; T where there is none."""
        return self.origin // self.place.shape[1]

    def without_row(self, choices: Int[Array, "T C"]) -> Bool[Array, "T C"]:
        """Which of the choices that were sorted are of somebody, and yet have no row."""
        there = (choices >= 0) & (choices < self.sizes.shape[0])
        return there & (self.place == self.origin.shape[0])


def by_expert(choices: Int[Array, "T C"], experts: int, rows: int | None = None) -> Order:
    """The order of choices among `experts`; those outside 0 … E−1 are of nobody.

    Of more than `rows` choices the last in order get no row.
    """
    flat = choices.reshape(-1)
    count = flat.shape[0]
    M = count if rows is None else min(rows, count)
    key = jnp.where((flat >= 0) & (flat < experts), flat, experts)
    order = jnp.argsort(key, stable=True)
    rank = jnp.zeros(count, order.dtype).at[order].set(jnp.arange(count), unique_indices=True)
    ends = jnp.minimum(jnp.searchsorted(key[order], jnp.arange(experts), side="right"), M)
    total = ends[-1] if experts else 0
    origin = jnp.where(jnp.arange(M) < total, order[:M], count)
    place = jnp.where((key < experts) & (rank < M), rank, M)
    return Order(origin, place.reshape(choices.shape), jnp.diff(ends, prepend=0))


@jax.custom_vjp
def collect(
    x: Float[Array, "T D"], token: Int[Array, " M"], place: Int[Array, "T C"]
) -> Float[Array, "M D"]:
    """x[token], 0 where `token` is T. `place` are the rows in which each token was taken (or M).

    The gradient is summed over a token's places in float32.
    """
    return taken(x, token)


def _collect(x: Array, token: Array, place: Array) -> tuple[Array, Any]:
    return taken(x, token), place


def _uncollect(place: Array, by: Array) -> tuple[Array, None, None]:
    return _sum(by, place, lambda c, part: part), None, None


def _sum(y: Array, place: Array, weigh: Callable[[int, Array], Array]) -> Array:
    """Σ_c weigh(c, y[place[:, c]]) in float32, in y's dtype.

    One choice after another: all of them at once would be an array of T·C rows.
    """
    out = jnp.zeros((place.shape[0], y.shape[1]), jnp.float32)
    for c in range(place.shape[1]):
        out = out + weigh(c, taken(y, place[:, c]).astype(jnp.float32))
    return out.astype(y.dtype)


collect.defvjp(_collect, _uncollect)


def check_results(y: Array, order: Order) -> None:
    """Refuse results that are not of the rows in this order.

    Raises:
        ConfigError: there are more or fewer.
    """
    if y.shape[0] != order.origin.shape[0]:
        raise ConfigError(
            f"combine: y {y.shape} must have a result for each of the {order.origin.shape[0]} rows"
            " that were received"
        )


@jax.custom_vjp
def _weighed(y: Array, weights: Array, origin: Array, place: Array) -> Array:
    return _sum(y, place, lambda c, part: weights[:, c, None].astype(jnp.float32) * part)


def _weigh(y: Array, weights: Array, origin: Array, place: Array) -> tuple[Array, Any]:
    return _weighed(y, weights, origin, place), (y, weights, origin, place)


def _unweigh(saved: Any, by: Array) -> tuple[Array, Array, None, None]:
    y, weights, origin, place = saved
    own = weights.reshape(-1).astype(jnp.float32).at[origin].get(mode="fill", fill_value=0)
    dy = taken(by, origin // place.shape[1]).astype(jnp.float32) * own[:, None]
    dw = (taken(y, place).astype(jnp.float32) * by.astype(jnp.float32)[:, None]).sum(-1)
    return dy.astype(y.dtype), dw.astype(weights.dtype), None, None


_weighed.defvjp(_weigh, _unweigh)


def weigh(
    y: Float[Array, "M D"],
    weights: Float[Array, "_ _"],
    origin: Int[Array, " M"],
    place: Int[Array, "T C"],
) -> Float[Array, "T D"]:
    """Σ_c weights[t, c] · y[place[t, c]], summed in float32, in y's dtype. No row gives 0.

    Raises:
        ConfigError: weights that are not of the choices.
    """
    if weights.shape != place.shape:
        raise ConfigError(
            f"combine: weights {weights.shape} must be those of choices {place.shape}"
        )
    return _weighed(y, weights, origin, place)
