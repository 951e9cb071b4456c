"""Dispatch without an exchange: the device has all experts, and sorts its own choices."""

from dataclasses import dataclass

from jaxtyping import Array

from jscale.pallas_kernels.dispatch.order import Order, by_expert, check_results, weigh
from jscale.pallas_kernels.dispatch.signature import Received, check_rows, lost


@dataclass(frozen=True)
class Local:
    """Every device has all experts, and nothing is sent.

    `rows` bounds the rows that they have in all; None is enough for any choices, T·C.
    """

    rows: int | None = None

    def __post_init__(self) -> None:
        check_rows("Local", self.rows)

    def dispatch(self, x: Array, choices: Array, experts: int) -> tuple[Received, Order]:
        """This device's own rows in the order of their experts."""
        order = by_expert(choices, experts, self.rows)
        dropped = lost(order.without_row(choices), None)
        return Received(x, order.token, order.sizes, dropped), order

    def combine(self, y: Array, weights: Array, ticket: Order) -> Array:
        """The weighted sum of each token's results."""
        check_results(y, ticket)
        return weigh(y, weights, ticket.origin, ticket.place)
