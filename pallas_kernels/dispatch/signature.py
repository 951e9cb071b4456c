"""What every way of dispatching takes and gives, and the check of what is given."""

# T tokens of this device, C choices per token, E experts, G experts of this device, R rows
# received, M rows of its experts, D the size of a row, F that of a result.

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jscale.errors import ConfigError


class Received(NamedTuple):
    """What a device's experts have to work on.

    `x[rows]` are the rows of its first expert, then those of its second, …, `sizes` of each: what
    `grouped_matmul` takes. `rows` is R where there is no row. `dropped` counts the choices of this
    device that found no room, at whatever device.
    """

    x: Float[Array, "R D"]
    rows: Int[Array, " M"]
    sizes: Int[Array, " G"]
    dropped: Int[Array, ""]


@runtime_checkable
class Dispatcher(Protocol):
    """A way to exchange rows between tokens' devices and experts' devices."""

    def dispatch(self, x: Array, choices: Array, experts: int) -> tuple[Received, Any]: ...

    def combine(self, y: Array, weights: Array, ticket: Any) -> Array: ...


def dispatch(
    x: Float[Array, "_ D"], choices: Int[Array, "..."], experts: int, by: Dispatcher
) -> tuple[Received, Any]:
    """The rows that this device's experts must compute, and a ticket to send the results back.

    `choices` are the experts of each token, counted over the whole; outside 0 … E−1 is no expert
    (padding), and costs nothing. Experts are split over devices in their order. Inside `shard_map`
    for all ways but `Local` and `OneHot()`. No token is lost without being counted in
    `Received.dropped`.

    Raises:
        ConfigError: choices that do not fit, an axis that is not there, or experts that do not
            divide over the devices.
    """
    _check_way(by)
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ConfigError(f"dispatch: x must be real numbers [T, D], not {x.dtype} {x.shape}")
    if choices.ndim != 2 or choices.shape[0] != x.shape[0]:
        raise ConfigError(
            f"dispatch: choices {choices.shape} must be [T, C] with the T={x.shape[0]} of x"
        )
    if not jnp.issubdtype(choices.dtype, jnp.integer):
        raise ConfigError(f"dispatch: choices must be integers, not {choices.dtype}")
    if not isinstance(experts, int) or experts < 1:
        raise ConfigError(f"dispatch: experts must be a whole number of at least 1, not {experts}")
    if not x.shape[0]:  # no exchange takes nothing: a row for nobody
        x = jnp.zeros((1, x.shape[1]), x.dtype)
        choices = jnp.full((1, choices.shape[1]), -1, choices.dtype)
    return by.dispatch(x, choices, experts)


def combine(
    y: Float[Array, "M F"], weights: Float[Array, "T C"], ticket: Any, by: Dispatcher
) -> Float[Array, "T F"]:
    """Σ_c weights[t, c] · (the result of token t's choice c), 0 for what was dropped or of nobody.

    `y` are the results of `Received.rows`, in their order. Sums are in float32, and over devices in
    y's dtype.

    Raises:
        ConfigError: results or weights that do not fit what was dispatched.
    """
    _check_way(by)
    for name, given in (("y", y), ("weights", weights)):
        if given.ndim != 2 or not jnp.issubdtype(given.dtype, jnp.floating):
            form = "[M, F]" if name == "y" else "[T, C]"
            raise ConfigError(
                f"combine: {name} must be real numbers {form}, not {given.dtype} {given.shape}"
            )
    if not weights.shape[0]:  # as `dispatch` has it
        return by.combine(y, jnp.zeros((1, weights.shape[1]), weights.dtype), ticket)[:0]
    return by.combine(y, weights, ticket)


def _check_way(by: Any) -> None:
    if isinstance(by, type) or not isinstance(by, Dispatcher):
        raise ConfigError(f"dispatch: by must be a way to dispatch, such as Local(), not {by!r}")


def check_rows(way: str, rows: Any) -> None:
    """Refuse a bound on rows that is none.

    Raises:
        ConfigError: it is neither None nor a whole number of at least 1.
    """
    if rows is not None and (not isinstance(rows, int) or rows < 1):
        raise ConfigError(
            f"dispatch: {way}.rows must be a whole number of at least 1 or None, not {rows}"
        )


def devices_along(axis: str | tuple[str, ...]) -> int:
    """How many devices there are along mesh axes.

    Raises:
        ConfigError: there is no such axis where this is traced.
    """
    try:
        return lax.axis_size(axis)
    except NameError as error:
        raise ConfigError(
            f"dispatch: axis {axis!r} is no mesh axis of a shard_map around this; only Local and"
            " OneHot() work without one"
        ) from error


def own_experts(experts: int, devices: int) -> int:
    """How many experts each device has.

    Raises:
        ConfigError: they do not divide.
    """
    if experts % devices:
        raise ConfigError(f"dispatch: {experts} experts do not divide over {devices} devices")
    return experts // devices


def lost(without: Bool[Array, "T C"], axis: str | tuple[str, ...] | None) -> Int[Array, ""]:
    """How many choices of this device have no row, where `without` marks those of all devices.

    Each device marks the choices of its own experts, for tokens that stand device after device.
    """
    if axis is None:
        return without.sum(dtype=jnp.int32)
    each = without.reshape(lax.axis_size(axis), -1).sum(1, dtype=jnp.int32)
    return lax.psum_scatter(each, axis)
