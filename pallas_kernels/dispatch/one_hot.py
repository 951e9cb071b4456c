"""Dispatch by products with one-hot tables, as in GShard: nothing is sorted, all is plain JAX.

Tables have M·T·C numbers, so this is for few tokens: what the other ways are held against.
Source: Lepikhin et al. 2020, GShard, arXiv 2006.16668.
"""

# T tokens (of all devices), C choices per token, M rows, D the size of a row, G own experts.

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jscale.errors import ConfigError
from jscale.pallas_kernels.dispatch.signature import (
    Received,
    check_rows,
    devices_along,
    lost,
    own_experts,
)

EXACT = lax.Precision.HIGHEST  # a product with 1 gives the number itself


class Ticket(NamedTuple):
    """Which row each choice has, all 0 where it has none."""

    table: Float[Array, "T C M"]


@dataclass(frozen=True)
class OneHot:
    """Rows are products of a table with tokens; results go back by a product with the same table.

    Without an `axis` the device has all experts. Over the mesh axes of the experts all tokens are
    gathered, and results scattered as sums. `rows` bounds the rows that a device's experts may have
    in all; None is enough for any choices. Gradients are JAX's own: what is not a number in one
    token is so in all.
    """

    axis: str | tuple[str, ...] | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        check_rows("OneHot", self.rows)

    def dispatch(self, x: Array, choices: Array, experts: int) -> tuple[Received, Ticket]:
        """The rows of tokens that chose this device's experts, in the order of the experts."""
        mine, own = choices, experts
        if self.axis is not None:
            own = own_experts(experts, devices_along(self.axis))
            x, choices = (lax.all_gather(a, self.axis, tiled=True) for a in (x, choices))
            mine = jnp.where(choices < experts, choices - lax.axis_index(self.axis) * own, own)
        M = min(self.rows or choices.size, choices.size)
        place, sizes = _places(mine, own, M)
        table = jax.nn.one_hot(place, M, dtype=x.dtype)
        rows = jnp.einsum("tcm,td->md", table, x, precision=EXACT)
        count = jnp.arange(M)
        taken = jnp.where(count < sizes.sum(), count, M)
        dropped = lost((mine >= 0) & (mine < own) & (place == M), self.axis)
        return Received(rows, taken, sizes, dropped), Ticket(table)

    def combine(self, y: Array, weights: Array, ticket: Ticket) -> Array:
        """The weighted sum of each token's results, over all devices."""
        table = ticket.table
        if y.shape[0] != table.shape[2]:
            raise ConfigError(
                f"combine: y {y.shape} must have a result for each of the {table.shape[2]} rows"
                " that were received"
            )
        if self.axis is not None:
            weights = lax.all_gather(weights, self.axis, tiled=True)
        if weights.shape != table.shape[:2]:
            raise ConfigError(
                f"combine: weights {weights.shape} must be those of choices {table.shape[:2]}"
            )
        given = [a.astype(jnp.float32) for a in (table, weights, y)]
        part = jnp.einsum("tcm,tc,md->td", *given, precision=EXACT).astype(y.dtype)
        return part if self.axis is None else lax.psum_scatter(part, self.axis, tiled=True)


def _places(
    mine: Int[Array, "T C"], own: int, rows: int
) -> tuple[Int[Array, "T C"], Int[Array, " G"]]:
    """The row of each choice, M where it has none, and how many rows each expert has."""
    chosen = jax.nn.one_hot(mine.reshape(-1), own, dtype=jnp.int32)
    counts = chosen.sum(0)
    ends = jnp.cumsum(counts)
    before = (jnp.cumsum(chosen, 0) - 1 + ends - counts) * chosen
    place = jnp.where(chosen.any(1), before.sum(1), rows)
    place = jnp.minimum(place, rows).reshape(mine.shape)
    return place, jnp.diff(jnp.minimum(ends, rows), prepend=0)
