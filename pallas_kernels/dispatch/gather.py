"""Dispatch by gathering all tokens: each device computes what its experts have to, and sums."""

# T tokens of this device, n devices, C choices per token.

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jscale.pallas_kernels.dispatch.order import Order, by_expert, check_results, weigh
from jscale.pallas_kernels.dispatch.signature import (
    Received,
    check_rows,
    devices_along,
    lost,
    own_experts,
)


@dataclass(frozen=True)
class Gather:
    """All-gather of tokens over the mesh axes of the experts, reduce-scatter of the results.

    Regular traffic of n·T rows both ways, whatever is chosen; good for few devices and many
    choices. `rows` bounds the rows that a device's experts may have in all; None is enough for
    any choices, n·T·C.
    """

    axis: str | tuple[str, ...]
    rows: int | None = None

    def __post_init__(self) -> None:
        check_rows("Gather", self.rows)

    def dispatch(self, x: Array, choices: Array, experts: int) -> tuple[Received, Order]:
        """The rows of all devices' tokens that chose this device's experts."""
        n = devices_along(self.axis)
        own = own_experts(experts, n)
        x, choices = (lax.all_gather(a, self.axis, tiled=True) for a in (x, choices))
        # Somebody else's experts, and nobody's, are outside 0 … own − 1.
        mine = choices - lax.axis_index(self.axis) * own
        mine = jnp.where(choices < experts, mine, own)
        order = by_expert(mine, own, self.rows)
        dropped = lost(order.without_row(mine), self.axis)
        return Received(x, order.token, order.sizes, dropped), order

    def combine(self, y: Array, weights: Array, ticket: Order) -> Array:
        """The weighted sum over this device's experts, then over devices."""
        check_results(y, ticket)
        weights = lax.all_gather(weights, self.axis, tiled=True)
        part = weigh(y, weights, ticket.origin, ticket.place)
        return lax.psum_scatter(part, self.axis, tiled=True)
