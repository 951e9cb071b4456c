"""Dispatch by a ragged all-to-all: each device sends every other just what it must.

A device receives all that its experts have to do in one buffer, whichever expert and device it
belongs to, so that a bound on its size wastes and drops the least.
"""

# T tokens of this device, C choices per token, n devices, G experts of a device, E of all.

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jscale.errors import ConfigError
from jscale.pallas_kernels.device import device
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
from jscale.pallas_kernels.grouped_matmul.rows import taken


class Route(NamedTuple):
    """What this device sends to each of n devices, and what it receives from each.

    `read` is where in its array what goes to device d begins, `write` where in d's it goes, `send`
    how much; `arrive` is where what device s sent begins here, `origin` where it began there,
    `receive` how much.
    """

    read: Int[Array, " n"]
    write: Int[Array, " n"]
    send: Int[Array, " n"]
    arrive: Int[Array, " n"]
    origin: Int[Array, " n"]
    receive: Int[Array, " n"]

    def back(self) -> "Route":
        """The way of everything back to where it came from."""
        return Route(
            read=self.arrive,
            write=self.origin,
            send=self.receive,
            arrive=self.read,
            origin=self.write,
            receive=self.send,
        )


class Ticket(NamedTuple):
    """How this device's choices were sorted, the way they took, and the order of what came."""

    sent: Order
    route: Route
    order: Order


@dataclass(frozen=True)
class Ragged:
    """A ragged all-to-all each way over one mesh axis: the least traffic that there can be.

    `rows` bounds the rows that a device receives, for all its experts together; what is more is
    dropped, of the last devices first. None is enough for any choices, n·T·C. Where XLA lacks the
    collective (on CPU) all rows are gathered instead.
    """

    axis: str
    rows: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.axis, str):
            raise ConfigError(f"dispatch: Ragged.axis must be one mesh axis, not {self.axis!r}")
        check_rows("Ragged", self.rows)

    def dispatch(self, x: Array, choices: Array, experts: int) -> tuple[Received, Ticket]:
        """The rows that all devices sent to this one's experts."""
        n = devices_along(self.axis)
        own, most = own_experts(experts, n), n * choices.size
        R = min(self.rows or most, most)
        sent = by_expert(choices, experts)
        sizes = lax.all_gather(sent.sizes, self.axis).reshape(n, n, own)  # from, to, expert
        route, counts = _route(sizes, R, lax.axis_index(self.axis))
        rows = collect(x, sent.token, sent.place)
        buffer = exchange(rows, route, R, self.axis)
        order = by_expert(_experts(counts, R)[:, None], own)
        dropped = (sent.sizes.sum() - route.send.sum()).astype(jnp.int32)
        return Received(buffer, order.token, order.sizes, dropped), Ticket(sent, route, order)

    def combine(self, y: Array, weights: Array, ticket: Ticket) -> Array:
        """The results sent back, and the weighted sum of each token's."""
        sent, route, order = ticket
        check_results(y, order)
        back = collect(y, order.place[:, 0], order.origin[:, None])
        rows = exchange(back, route.back(), sent.origin.shape[0], self.axis)
        return weigh(rows, weights, sent.origin, sent.place)


def _route(
    sizes: Int[Array, "n n G"], room: int, me: Int[Array, ""]
) -> tuple[Route, Int[Array, "n G"]]:
    """This device's route, and how many rows of its experts come from each device.

    `sizes` are the rows from each device for each expert of each device; a device has room for the
    first `room` that come to it, in the order of those who send.
    """
    sent = sizes.sum(2)  # from, to
    ends = jnp.minimum(jnp.cumsum(sent, 0), room)
    kept = jnp.diff(ends, axis=0, prepend=0)
    begins = ends - kept  # where in the receiver's buffer
    reads = jnp.cumsum(sent, 1) - sent  # where in the sender's rows
    route = Route(reads[me], begins[me], kept[me], begins[:, me], reads[:, me], kept[:, me])
    within = jnp.minimum(jnp.cumsum(sizes[:, me], 1), kept[:, me, None])
    return route, jnp.diff(within, axis=1, prepend=0)


def _experts(counts: Int[Array, "n G"], places: int) -> Int[Array, " R"]:
    """The expert of each place of a buffer that holds so many rows; G where there is none."""
    n, G = counts.shape
    part = group_of(counts.reshape(-1), places)
    return jnp.where(part < n * G, part % G, G)


def exchange(x: Array, route: Route, rows: int, axis: str) -> Array:
    """What all devices sent to this one, in an array of so many rows; 0 where nothing came."""
    return _exchange(rows, axis, x, route)


def _move(rows: int, axis: str, x: Array, route: Route) -> Array:
    if device().platform == "cpu":
        return _emulated(rows, axis, x, route)
    return lax.ragged_all_to_all(
        x,
        jnp.zeros((rows, *x.shape[1:]), x.dtype),
        route.read,
        route.send,
        route.write,
        route.receive,
        axis_name=axis,
    )


def _emulated(rows: int, axis: str, x: Array, route: Route) -> Array:
    """The same by an all-gather."""
    place = jnp.arange(rows)
    within = place[:, None] - route.arrive  # of what each device sent
    mine = (within >= 0) & (within < route.receive)
    source = mine.argmax(1)
    index = source * x.shape[0] + (route.origin + within)[place, source]
    everything = lax.all_gather(x, axis, tiled=True)
    return taken(everything, jnp.where(mine.any(1), index, everything.shape[0]))


# XLA's transpose of the ragged exchange is not on every platform; the way back is a route as well.
_exchange = jax.custom_vjp(_move, nondiff_argnums=(0, 1))


def _forward(rows: int, axis: str, x: Array, route: Route) -> tuple[Array, Any]:
    return _move(rows, axis, x, route), (x.shape[0], route)


def _backward(rows: int, axis: str, saved: Any, by: Array) -> tuple[Array, None]:
    count, route = saved
    return _move(count, axis, by, route.back()), None


_exchange.defvjp(_forward, _backward)
