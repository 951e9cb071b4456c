"""Which tile of rows is multiplied with which group's matrix, in what order: tables for kernels.

On TPUs tiles lie where they lie: one that two groups share is visited by each, and each writes
its own rows. On GPUs each group has tiles of its own, from its first row on. How many visits there
are depends on the sizes; their greatest number does not, and the tables are that long.
"""

# M rows, E groups, V visits at most, t rows of a tile.

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class Visits(NamedTuple):
    """What visit v reads and writes.

    `low` and `high` bound its rows; where nothing is to be done both are 0. `tile` is of rows that
    are written, `source` and `group` of what is fetched: where nothing is multiplied they name the
    last that was, so that nothing is. `live` is how many of the first visits multiply.
    """

    tile: Int[Array, " V"]
    source: Int[Array, " V"]
    group: Int[Array, " V"]
    low: Int[Array, " V"]
    high: Int[Array, " V"]
    live: Int[Array, " 1"]


class Spans(NamedTuple):
    """Where groups start and end; the last is that of the rows which no group has."""

    start: Int[Array, " E+1"]
    end: Int[Array, " E+1"]


def spans(sizes: Int[Array, " E"], rows: int) -> Spans:
    """Groups of these sizes, one after the other, and the rest of the rows."""
    ends = jnp.minimum(jnp.cumsum(sizes.astype(jnp.int32)), rows)
    zero, last = jnp.zeros(1, jnp.int32), jnp.full(1, rows, jnp.int32)
    return Spans(jnp.concatenate([zero, ends]), jnp.concatenate([ends, last]))


def shared(sizes: Int[Array, " E"], rows: int, t: int) -> Visits:
    """Each tile of rows, for each group that has rows in it, and for those that none has."""
    E, found = sizes.shape[0], spans(sizes, rows)
    first = found.start // t
    count = jnp.where(found.end > found.start, -(-found.end // t) - first, 0)
    done = jnp.cumsum(count)
    place = jnp.arange(-(-rows // t) + min(E, rows - 1))
    here = jnp.minimum(place, done[E] - 1)
    owner = _owner(done, here)
    real = jnp.minimum(place, jnp.maximum(done[E - 1] - 1, 0))
    group = jnp.minimum(_owner(done[:E], real), E - 1)
    at = lambda owner, here: first[owner] + here - (done - count)[owner]
    there = place < done[E]
    return Visits(
        at(owner, here),
        at(group, real),
        group,
        jnp.where(there, found.start[owner], 0),
        jnp.where(there, found.end[owner], 0),
        done[E - 1 : E],
    )


def gathered(sizes: Int[Array, " E"], rows: int, t: int) -> Visits:
    """Each group's tiles of rows, one after the other; a group without rows once, with none."""
    E, (start, end) = sizes.shape[0], spans(sizes, rows)
    start, end, tiles = start[:E], end[:E], -(-rows // t)
    first = jnp.minimum(start // t, tiles - 1)
    count = jnp.where(end > start, -(-end // t) - first, 1)
    done = jnp.cumsum(count)
    place = jnp.arange(tiles + E - 1)
    here = jnp.minimum(place, done[E - 1] - 1)
    owner = _owner(done, here)
    source = first[owner] + here - (done - count)[owner]
    there = place < done[E - 1]
    low, high = (jnp.where(there, x[owner], 0) for x in (start, end))
    return Visits(source, source, owner, low, high, done[E - 1 :])


class Turns(NamedTuple):
    """The group of each tile, E for none, and its first row and the end of the group's."""

    group: Int[Array, " V"]
    low: Int[Array, " V"]
    high: Int[Array, " V"]


def own(sizes: Int[Array, " E"], rows: int, t: int) -> Turns:
    """Tiles that begin where their group does; then those of the rows that no group has."""
    E, found = sizes.shape[0], spans(sizes, rows)
    count = -(-(found.end - found.start) // t)
    done = jnp.cumsum(count)
    place = jnp.arange((rows + min(E + 1, rows) * (t - 1)) // t)
    owner = jnp.minimum(_owner(done, place), E)
    low = found.start[owner] + (place - (done - count)[owner]) * t
    there = place < done[E]
    return Turns(owner, jnp.where(there, low, 0), jnp.where(there, found.end[owner], 0))


def _owner(done: Int[Array, " _"], place: Int[Array, " V"]) -> Int[Array, " V"]:
    """Whose turn it is, by how many turns were had when each has had all of its own."""
    return jnp.searchsorted(done, place, side="right", method="compare_all").astype(jnp.int32)
