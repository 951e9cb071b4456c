"""Tiles of queries and of keys: which pairs must be visited, and who sees whom in one."""

# B batch, T query length, S key length.
# i and j count tiles of queries and of keys, t and s are places in a tile.

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places

PADDING = np.iinfo(np.int32).min  # the segment of places added to fill a tile


@dataclass(frozen=True)
class Tiles:
    """How many queries and how many keys are taken at a time."""

    queries: int
    keys: int

    def whole(self, queries: int, keys: int) -> tuple[int, int]:
        """The lengths when filled up to whole tiles."""
        return -(-queries // self.queries) * self.queries, -(-keys // self.keys) * self.keys


def tiles(queries: int, keys: int, most: Tiles | None = None) -> Tiles:
    """Sizes of at most `most`; by default those that were fastest on CPU, `rule`."""
    most = most or rule(queries, keys)

    def even(length: int, most: int) -> int:  # tiles of one size that add few places to the length
        count = -(-length // most)
        return -(-length // (8 * count)) * 8

    return Tiles(even(queries, most.queries), even(keys, most.keys))


def rule(queries: int, keys: int) -> Tiles:
    """128 for short sequences, 256 from 2,048 on."""
    most = 128 if max(queries, keys) < 2048 else 256
    return Tiles(most, most)


class Visits(NamedTuple):
    """Positions and segments of all queries and keys, and what each tile of queries visits.

    Without a first axis of B where they are the same for all rows; segments are None where there
    is only one and nothing was filled up.
    """

    positions: tuple[Int[Array, "*B T"], Int[Array, "*B S"]]
    segments: tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None
    order: Int[Array, "i j"]  # tiles of keys in the order of visits by tile i of the queries
    count: Int[Array, "i"]  # of which so many are visited


def look(mask: Mask, size: Tiles, lengths: tuple[int, int], places: Places) -> Visits:
    """Places of queries and keys, filled to whole tiles, and the tiles that must be visited."""
    (T, S), whole = lengths, size.whole(*lengths)
    # What is known while tracing stays NumPy's, and costs the program nothing.
    positions = places.positions or (np.arange(S - T, S, dtype=np.int32), np.arange(S))
    seen = needed(mask, *ranges(positions, lengths, size))
    marks = places.segments
    if marks is not None:
        (low, high), (least, most) = ranges(marks, lengths, size)
        seen = seen & (high[:, None] >= least) & (low[:, None] <= most)
    elif whole != lengths:
        marks = jnp.zeros(T, jnp.int32), jnp.zeros(S, jnp.int32)
    if marks is not None:
        # Filled-up queries and keys are of different segments, so that none sees another.
        extra = PADDING, PADDING + 1
        queries, keys = (
            fill(x.astype(jnp.int32), n, x.ndim - 1, value)
            for x, n, value in zip(marks, whole, extra, strict=True)
        )
        marks = queries, keys
    queries, keys = (
        fill(jnp.asarray(x), n, x.ndim - 1) for x, n in zip(positions, whole, strict=True)
    )
    known = np if isinstance(seen, np.ndarray) else jnp
    order = known.argsort(~seen, axis=-1, stable=True).astype(np.int32)
    count = seen.sum(-1, dtype=np.int32)
    return Visits((queries, keys), marks, jnp.asarray(order), jnp.asarray(count))


def fill(x: Array, length: int, axis: int, value: int = 0) -> Array:
    """`x` with `value` added at the end of an axis up to `length`."""
    more = length - x.shape[axis]
    if not more:
        return x
    widths = [(0, more if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def ranges(values: tuple[Any, Any], lengths: tuple[int, int], size: Tiles) -> list[tuple[Any, Any]]:
    """The least and the greatest value in each tile, of queries and of keys, over all rows."""

    def of(x: Any, length: int, step: int) -> tuple[Any, Any]:
        known = np if isinstance(x, np.ndarray) else jnp
        widths = [(0, 0)] * (x.ndim - 1) + [(0, -length % step)]
        tiled = known.pad(x, widths, mode="edge").reshape(x.size // length, -1, step)
        return tiled.min((0, 2)), tiled.max((0, 2))

    steps = size.queries, size.keys
    return [of(*each) for each in zip(values, lengths, steps, strict=True)]


def needed(mask: Mask, queries: tuple[Any, Any], keys: tuple[Any, Any]) -> Any:
    """[i, j]: whether any query of tile i may see any key of tile j, by their positions."""
    (low, high), (least, most) = queries, keys
    known = np if all(isinstance(x, np.ndarray) for x in (low, least)) else jnp
    every = known.broadcast_arrays(low[:, None], high[:, None], least, most)
    return mask.some(*every)


def cut(pair: tuple[Array, Array], size: Tiles, i: Any, j: Any) -> tuple[Array, Array]:
    """What the queries and keys of tiles i and j have, as [*B, t, 1] and [*B, 1, s]."""
    queries = lax.dynamic_slice_in_dim(pair[0], i * size.queries, size.queries, -1)
    keys = lax.dynamic_slice_in_dim(pair[1], j * size.keys, size.keys, -1)
    return queries[..., :, None], keys[..., None, :]


def allowed(mask: Mask, size: Tiles, visits: Visits, i: Any, j: Any) -> Bool[Array, "*B t s"]:
    """Which keys of tile j each query of tile i may see."""
    seen = mask.sees(*cut(visits.positions, size, i, j))
    if visits.segments is not None:
        queries, keys = cut(visits.segments, size, i, j)
        seen &= queries == keys
    return seen


def away(size: Tiles, visits: Visits, i: Any, j: Any) -> Int[Array, "*B t s"]:
    """How far each key of tile j stands from each query of tile i."""
    queries, keys = cut(visits.positions, size, i, j)
    return jnp.abs(queries - keys)
