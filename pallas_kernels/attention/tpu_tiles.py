"""Attention on TPU: how long tiles are, which of them are visited, and the scores in one of them.

Queries and keys are taken a tile at a time. Tables in scalar memory, which the core reads before a
tile is fetched, tell each tile of one side between which tiles of the other the mask lets it see:
what lies outside is neither fetched nor computed.
"""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.
# i and j count tiles of queries and of keys, t and s are places in a tile.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.block import product

LANES = 128  # numbers in one row of a vector register
VMEM = 12 * 2**20  # bytes that tiles may take: the compiler's limit is 16 MiB unless told otherwise


class Tiles(NamedTuple):
    """How many queries and how many keys are taken at a time."""

    queries: int
    keys: int


def tiles(kind: str, head: int, value: int, queries: int, keys: int, width: int) -> Tiles:
    """Sizes for a chip by JAX's name for it; `width` is that of one number, in bytes.

    512 × 512 scores are 256 passes of a 128 × 128 matrix unit for each 128 of the head size, which
    hides the fetch of the next tiles and the start of a grid step; four such arrays in float32 are
    4 MiB. Large heads and float32, whose tiles would not fit beside them, halve the queries first:
    of the keys, longer tiles mean fewer corrections of the running sum. A v4 has 16 MiB of VMEM
    for each core in all, so that the compiler's own needs must fit as well: it is given half.
    """
    size = Tiles(512, 512)
    while needs(size, head, value, width) > room(kind) and size.keys > LANES:
        t, s = size
        size = Tiles(t // 2, s) if t == s else Tiles(t, s // 2)
    return cut(size, queries, keys)


def room(kind: str) -> int:
    """Bytes of VMEM that tiles may take on a chip."""
    return VMEM // 2 if kind == "TPU v4" else VMEM


def cut(size: Tiles, queries: int, keys: int) -> Tiles:
    """Tiles that are no longer than the lengths, filled up to whole registers."""
    whole = lambda most, length: min(most, -(-length // LANES) * LANES)
    return Tiles(whole(size.queries, queries), whole(size.keys, keys))


def needs(size: Tiles, head: int, value: int, width: int) -> int:
    """Bytes of VMEM, by the largest of the kernels: that of the gradients of keys and values."""
    wide = sum(-(-n // LANES) * LANES for n in (head, value))
    fetched = 2 * (size.queries + 2 * size.keys) * wide * width  # twice: one is used, one fetched
    return fetched + size.keys * wide * 4 + 4 * size.queries * size.keys * 4


@dataclass(frozen=True)
class Problem:
    """What of a call is known while tracing."""

    mask: Mask
    scale: float
    cap: float | None
    size: Tiles
    queries: int
    keys: int

    @property
    def counts(self) -> tuple[int, int]:
        """How many tiles of queries and of keys there are."""
        return -(-self.queries // self.size.queries), -(-self.keys // self.size.keys)


class Ranges(NamedTuple):
    """The least and greatest value in each tile of queries and of keys, [rows · tiles]."""

    low: Any
    high: Any
    least: Any
    most: Any


class Tables(NamedTuple):
    """What the core knows of tiles before it fetches them, each flat: [rows · tiles].

    `first` and `last` are for tiles of one side and count tiles of the other; where nothing is
    visited, last is below first.
    """

    first: Any
    last: Any
    positions: Ranges
    segments: Ranges | None
    slopes: Any
    sinks: Any = None


def tables(problem: Problem, places: Places, slopes: Any, of_keys: bool) -> tuple[Tables, int]:
    """The tables for kernels that hold a tile of queries (or of keys), and the most it visits."""
    counts = problem.counts
    still = _ranges(problem, _in_order(problem))
    positions = still if places.positions is None else _ranges(problem, places.positions)
    segments = None if places.segments is None else _ranges(problem, places.segments)
    seen = _some(problem, positions)
    most = counts[0] if of_keys else counts[1]
    if places.positions is None:  # not known of positions that are given
        most = max(1, int((_ends(seen, of_keys)[1] - _ends(seen, of_keys)[0]).max()) + 1)
    if segments is not None:
        low, high, least, greatest = _grid(problem, segments)
        seen = seen & (high >= least) & (low <= greatest)
    first, last = (_flat(x) for x in _ends(seen, of_keys))
    flat = lambda found: None if found is None else Ranges(*(_flat(x) for x in found))
    slopes = None if slopes is None else slopes.astype(jnp.float32)
    return Tables(first, last, Ranges(*(_flat(x) for x in positions)), flat(segments), slopes), most


def _flat(x: Any) -> Any:
    return jnp.asarray(x.reshape(-1), jnp.int32)


def _in_order(problem: Problem) -> tuple[Any, Any]:
    T, S = problem.queries, problem.keys
    return np.arange(S - T, S)[None], np.arange(S)[None]


def _ranges(problem: Problem, pair: tuple[Any, Any]) -> Ranges:
    """The ranges of values in tiles, [rows, tiles]; in numpy, and so at once, if they are."""
    found = []
    for x, step, count in zip(pair, problem.size, problem.counts, strict=True):
        xp = np if isinstance(x, np.ndarray) else jnp
        tiled = xp.pad(x, ((0, 0), (0, step * count - x.shape[1])), mode="edge")
        tiled = tiled.reshape(-1, count, step)
        found += [tiled.min(2), tiled.max(2)]
    return Ranges(*found)


def _grid(problem: Problem, found: Ranges) -> Ranges:
    """The same, each as [rows, i, j]."""
    xp = np if isinstance(found.low, np.ndarray) else jnp
    shape = (found.low.shape[0], *problem.counts)
    queries, keys = (slice(None), slice(None), None), (slice(None), None)
    where = queries, queries, keys, keys
    wide = [xp.broadcast_to(x[at], shape) for x, at in zip(found, where, strict=True)]
    return Ranges(*wide)


def _some(problem: Problem, found: Ranges) -> Any:
    return problem.mask.some(*_grid(problem, found))


def _ends(seen: Any, of_keys: bool) -> tuple[Any, Any]:
    seen = seen.swapaxes(1, 2) if of_keys else seen
    any_seen, count = seen.any(-1), seen.shape[-1]
    last = count - 1 - seen[:, :, ::-1].argmax(-1)
    return any_seen * seen.argmax(-1), any_seen * (last + 1) - 1


def entry(table: Any, rows: int, b: Any, at: Any) -> Any:
    """Row b's entry for a tile; `rows` says how many rows the table has: one for all, or each."""
    count = table.shape[0] // rows
    return table[at] if rows == 1 else table[b * count + at]


def rows(problem: Problem, found: Ranges) -> int:
    """How many rows the tables of ranges have."""
    return found.low.shape[0] // problem.counts[0]


def visit(problem: Problem, known: Tables, b: Any, i: Any, j: Any) -> tuple[Any, Any]:
    """Whether tile i of the queries may see any key of tile j, and whether all see all of them."""
    cut = lambda found: (
        entry(found.low, rows(problem, found), b, i),
        entry(found.high, rows(problem, found), b, i),
        entry(found.least, rows(problem, found), b, j),
        entry(found.most, rows(problem, found), b, j),
    )
    places = cut(known.positions)
    some, every = problem.mask.some(*places), problem.mask.every(*places)
    if known.segments is not None:
        low, high, least, most = cut(known.segments)
        some &= (high >= least) & (low <= most)
        every &= (low == high) & (least == most) & (low == least)
    for at, length, step in (
        (i, problem.queries, problem.size[0]),
        (j, problem.keys, problem.size[1]),
    ):
        if length % step:
            every &= at < length // step  # the last tile ends in places that are not there
    return some, every


def reach(problem: Problem, refs: Any, of_keys: bool, b: Any, at: Any, step: Any) -> Any:
    """The tile of the other side that tile `at` visits in a step, and whether there is one.

    After the last one the same tile is named again, so that nothing is fetched.
    """
    batch = refs.first.shape[0] // problem.counts[int(of_keys)]
    first, last = (entry(x, batch, b, at) for x in (refs.first, refs.last))
    wanted = first + step
    return jnp.maximum(jnp.minimum(wanted, last), 0), wanted <= last


class Operands(NamedTuple):
    """What kernels read, by name, and the blocks in which they read it."""

    arrays: dict[str, Any]
    specs: dict[str, Any]


def operands(
    problem: Problem,
    heads: dict[str, Any],
    rows: dict[str, Any],
    bias: Any,
    places: Places,
    where: Callable[..., tuple[Any, Any, Any, Any]],
    turned: bool = False,
) -> Operands:
    """Blocks of tile i of the queries and tile j of the keys, from which their scores are made.

    `heads` are q, k, v and the gradient g, [B, N or K, T or S, …]; `rows` are numbers of each
    query, [B, N, T]. `where` gives (b, n, i, j) for a place in the grid and the tables. Positions
    and segments of queries are columns and those of keys rows; if `turned`, it is the reverse.
    """
    (t, s), group = problem.size, heads["q"].shape[1] // heads["k"].shape[1]
    at = lambda choose: lambda *grid: choose(*where(*grid))
    arrays: dict[str, Any] = dict(heads)
    specs: dict[str, Any] = {}
    for name, x in heads.items():
        if name in "kv":
            place = at(lambda b, n, i, j: (b, n // group, j, 0))
        else:
            place = at(lambda b, n, i, j: (b, n, i, 0))
        specs[name] = pl.BlockSpec((1, 1, s if name in "kv" else t, x.shape[-1]), place)
    for name, x in rows.items():
        arrays[name] = x[:, :, None]
        specs[name] = pl.BlockSpec((1, 1, 1, t), at(lambda b, n, i, j: (b, n, 0, i)))
    for name, pair in (("positions", places.positions), ("segments", places.segments)):
        if pair is not None:
            column, row = reversed(pair) if turned else pair
            arrays[name] = column.astype(jnp.int32)[:, :, None], row.astype(jnp.int32)[:, None]
            specs[name] = (
                pl.BlockSpec((1, s, 1), at(lambda b, n, i, j: (b, j, 0)))
                if turned
                else pl.BlockSpec((1, t, 1), at(lambda b, n, i, j: (b, i, 0))),
                pl.BlockSpec((1, 1, t), at(lambda b, n, i, j: (b, 0, i)))
                if turned
                else pl.BlockSpec((1, 1, s), at(lambda b, n, i, j: (b, 0, j))),
            )
    if bias is not None:
        many, several = (int(size > 1) for size in bias.shape[:2])
        arrays["bias"] = bias
        specs["bias"] = pl.BlockSpec(
            (1, 1, t, s), at(lambda b, n, i, j: (b * many, n * several, i, j))
        )
    return Operands(arrays, specs)


def places_in(problem: Problem, blocks: Any, i: Any, j: Any, turned: bool) -> tuple[Any, Any]:
    """Positions of the queries and of the keys, each as a whole tile."""
    t, s = problem.size
    shape = (s, t) if turned else (t, s)
    if "positions" in blocks:
        column, row = (jnp.broadcast_to(x[0], shape) for x in blocks["positions"])
        return (row, column) if turned else (column, row)
    queries = lax.broadcasted_iota(jnp.int32, shape, int(turned))
    keys = lax.broadcasted_iota(jnp.int32, shape, 1 - int(turned))
    return queries + (i * t + problem.keys - problem.queries), keys + j * s


def seen_in(problem: Problem, blocks: Any, i: Any, j: Any, turned: bool) -> Any:
    """Which keys of tile j each query of tile i may see, and nothing beyond the last of either."""
    t, s = problem.size
    shape = (s, t) if turned else (t, s)
    seen = problem.mask.sees(*places_in(problem, blocks, i, j, turned))
    if "segments" in blocks:
        column, row = (jnp.broadcast_to(x[0], shape) for x in blocks["segments"])
        seen &= column == row
    if problem.keys % s:
        seen &= lax.broadcasted_iota(jnp.int32, shape, 1 - int(turned)) < problem.keys - j * s
    if problem.queries % t:
        seen &= lax.broadcasted_iota(jnp.int32, shape, int(turned)) < problem.queries - i * t
    return seen


def inside(x: Any, at: Any, length: int) -> Any:
    """A tile with 0 for rows beyond the end, where memory may hold anything: 0 · NaN is NaN."""
    step = x.shape[0]
    if length % step == 0:
        return x
    there = lax.broadcasted_iota(jnp.int32, x.shape, 0) < length - at * step
    return jnp.where(there, x, jnp.zeros_like(x))


def scores_in(
    problem: Problem, blocks: Any, slope: Any, q: Any, k: Any, at: tuple[Any, Any], turned: bool
) -> tuple[Any, Any]:
    """The scores of a tile before masking, and their slope by scale · q kᵀ (None: 1)."""
    scores = product(k, q, (1, 1)) if turned else product(q, k, (1, 1))
    scores, bend = scores * problem.scale, None
    if problem.cap is not None:
        bent = jnp.tanh(scores / problem.cap)
        scores, bend = problem.cap * bent, 1 - bent * bent
    if "bias" in blocks:
        bias = blocks["bias"][0, 0].astype(jnp.float32)
        scores += bias.T if turned else bias
    if slope is not None:
        queries, keys = places_in(problem, blocks, *at, turned)
        scores -= slope * jnp.abs(queries - keys).astype(jnp.float32)
    return scores, bend
