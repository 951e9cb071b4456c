"""Dispatch without an exchange: the device has all experts, and sorts its own choices."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from jscale.pallas_kernels.dispatch.order import Order, by_expert, check_results, weigh
from jscale.pallas_kernels.dispatch.signature import Received


@dataclass(frozen=True)
class Local:
    """Every device has all experts: nothing is sent, and nothing dropped."""

    def dispatch(self, x: Array, choices: Array, experts: int) -> tuple[Received, Order]:
        """This device's own rows in the order of their experts."""
        order = by_expert(choices, experts)
        return Received(x, order.token, order.sizes, jnp.int32(0)), order

    def combine(self, y: Array, weights: Array, ticket: Order) -> Array:
        """The weighted sum of each token's results."""
        check_results(y, ticket)
        return weigh(y, weights, ticket.origin, ticket.place)
