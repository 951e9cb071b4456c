"""The order of a sequence in which a causal mask gives every device the same work."""

# B batch, T the whole sequence's length, or a device's own in `to_zigzag` and `from_zigzag`.

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Shaped

from jscale.errors import ConfigError


def zigzag(x: Any, ways: int) -> Any:
    """An array [B, T, ...] in the order in which device d's part is the chunks d and 2·ways−1−d.

    T is cut into 2·ways chunks. Give the positions the same order, that masks are right. NumPy
    arrays stay in the host's memory: a loader can reorder what it reads.

    Raises:
        ConfigError: a length that does not divide into 2·ways chunks.
    """
    return _reorder(x, order(ways))


def unzigzag(x: Any, ways: int) -> Any:
    """The inverse of `zigzag`. Raises as it does."""
    return _reorder(x, np.argsort(order(ways)))


def order(ways: int) -> Int[np.ndarray, " chunks"]:
    """Which of the 2·ways chunks stands at each place."""
    first = np.arange(ways)
    return np.stack([first, 2 * ways - 1 - first], 1).reshape(-1)


def _reorder(x: Any, chunks: np.ndarray) -> Any:
    B, T, *rest = x.shape
    if T % chunks.size:
        raise ConfigError(
            f"zigzag: a length of {T} does not divide into {chunks.size} chunks, two for each of"
            f" {chunks.size // 2} devices"
        )
    return x.reshape(B, chunks.size, T // chunks.size, *rest)[:, chunks].reshape(x.shape)


def zigzag_places(length: int, ways: int) -> Int[Array, " T"]:
    """`zigzag` of 0, 1, …, computed in each place: no device needs another's."""
    part = length // ways
    device, offset = jnp.divmod(jnp.arange(length), part)
    late = length - (device + 2) * (part // 2)  # less the offset's own first half
    return jnp.where(offset < part // 2, device * (part // 2), late) + offset


def to_zigzag(
    x: Shaped[Array, "B T *rest"], axes: str | tuple[str, ...]
) -> Shaped[Array, "B T *rest"]:
    """Inside `shard_map`, this device's part in zig-zag order of what was split in its own order.

    Each device sends both halves of its part once: no device gathers anything. A part must have an
    even length.
    """
    first, second = jnp.split(x, 2, 1)
    evens, odds = _hops(axes)
    even, odd = lax.ppermute(first, axes, evens), lax.ppermute(second, axes, odds)
    return _paired(even, odd, axes)


def from_zigzag(
    x: Shaped[Array, "B T *rest"], axes: str | tuple[str, ...]
) -> Shaped[Array, "B T *rest"]:
    """The inverse of `to_zigzag`, at the same cost."""
    evens, odds = ([(b, a) for a, b in hops] for hops in _hops(axes))
    first, second = jnp.split(x, 2, 1)
    even, odd = jnp.split(_paired(first, second, axes), 2, 1)
    return jnp.concatenate([lax.ppermute(even, axes, evens), lax.ppermute(odd, axes, odds)], 1)


def _hops(axes: str | tuple[str, ...]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """From which device to which the chunks of even and of odd number go: both are one to one."""
    ways = lax.axis_size(axes)
    owner = lambda chunk: min(chunk, 2 * ways - 1 - chunk)
    return [(d, owner(2 * d)) for d in range(ways)], [(d, owner(2 * d + 1)) for d in range(ways)]


def _paired(even: Array, odd: Array, axes: str | tuple[str, ...]) -> Array:
    """The chunks of even and of odd number, the earlier first; or back from that."""
    turned = lax.axis_index(axes) % 2 == 1  # the early chunk has the device's own number
    return jnp.concatenate([jnp.where(turned, odd, even), jnp.where(turned, even, odd)], 1)
