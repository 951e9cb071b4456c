"""Dispatch by an all-to-all of fixed size: so many rows from each device to each other."""

# T tokens of this device, C choices per token, n devices, P rows from one device to another, G
# experts of a device, F the size of a result.

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jscale.pallas_kernels.dispatch.order import (
    Order,
    by_expert,
    check_results,
    collect,
    weigh,
)
from jscale.pallas_kernels.dispatch.signature import (
    Received,
    check_rows,
    devices_along,
    own_experts,
)
from jscale.pallas_kernels.grouped_matmul.reference import group_of


class Ticket(NamedTuple):
    """Where choices stand in what was sent, and what was received in the order of experts."""

    origin: Int[Array, " nP"]  # the choice sent in each place; T·C where there is none
    place: Int[Array, "T C"]  # where each choice was sent; n·P where it was not
    order: Order  # of the places received


@dataclass(frozen=True)
class AllToAll:
    """One all-to-all each way over the mesh axes of the experts.

    `rows` is how many rows any device may send to any other; what is more is dropped. None is
    enough for any choices, T·C, and makes the traffic n times what it need be.
    """

    axis: str | tuple[str, ...]
    rows: int | None = None

    def __post_init__(self) -> None:
        check_rows("AllToAll", self.rows)

    def dispatch(self, x: Array, choices: Array, experts: int) -> tuple[Received, Ticket]:
        """The rows that all devices sent to this one's experts."""
        n = devices_along(self.axis)
        own, P = own_experts(experts, n), min(self.rows or choices.size, choices.size)
        sent = by_expert(choices, experts)
        origin, place = self._slots(sent, n, P)
        rows = collect(x, origin // choices.shape[1], place)
        counts = _within(sent.sizes.reshape(n, own), P)
        order = by_expert(_experts(self._swap(counts), P).reshape(-1, 1), own)
        dropped = (sent.sizes.sum() - counts.sum()).astype(jnp.int32)
        received = Received(self._swap(rows), order.token, order.sizes, dropped)
        return received, Ticket(origin, place, order)

    def combine(self, y: Array, weights: Array, ticket: Ticket) -> Array:
        """The results sent back, and the weighted sum of each token's."""
        order = ticket.order
        check_results(y, order)
        back = collect(y, order.place[:, 0], order.origin[:, None])
        return weigh(self._swap(back), weights, ticket.origin, ticket.place)

    def _swap(self, x: Array) -> Array:
        """The parts of an array, one for each device, sent to them."""
        return lax.all_to_all(x, self.axis, 0, 0, tiled=True)

    def _slots(self, sent: Order, n: int, P: int) -> tuple[Any, Any]:
        """The choice in each of n·P places, and the place of each choice."""
        count = sent.sizes.reshape(n, -1).sum(1)
        first = jnp.cumsum(count) - count
        j = jnp.arange(P)
        index = jnp.where(j < count[:, None], first[:, None] + j, sent.origin.shape[0])
        nobody = sent.place.size
        origin = sent.origin.at[index.reshape(-1)].get(mode="fill", fill_value=nobody)
        to = jnp.searchsorted(jnp.cumsum(count), sent.place, side="right")
        j = sent.place - first[jnp.minimum(to, n - 1)]
        there = (to < n) & (j < P) & (sent.place < sent.origin.shape[0])
        return origin, jnp.where(there, to * P + j, n * P)


def _within(counts: Int[Array, "n G"], most: int) -> Int[Array, "n G"]:
    """The counts that remain where each row's sum must not exceed `most`, the last cut first."""
    return jnp.diff(jnp.minimum(jnp.cumsum(counts, 1), most), axis=1, prepend=0)


def _experts(counts: Int[Array, "n G"], places: int) -> Int[Array, "n P"]:
    """The expert of each place in parts that hold so many rows of each; G where there is none."""
    return jax.vmap(lambda sizes: group_of(sizes, places))(counts)
