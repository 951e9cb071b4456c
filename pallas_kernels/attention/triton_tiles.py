"""What the Triton kernels of attention share: tiles, what they visit, loads and scores.

Arrays of a Triton kernel have sizes that are powers of two. Heads of other sizes, and lengths that
are no multiple of a tile, are loaded with a mask: nothing beyond an array is read.
"""

# B batch, T query length, S key length, N heads, K key/value heads, H head size, V value size.
# i and j count tiles of queries and of keys, R is B, or 1 where all rows are alike.

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jscale.pallas_kernels.attention.mask import Mask
from jscale.pallas_kernels.attention.places import Places
from jscale.pallas_kernels.block import up

LOG2E = math.log2(math.e)  # the processor has 2^x, not e^x: scores are kept times this


@dataclass(frozen=True)
class Tiles:
    """How many queries and keys are taken at a time, by how many warps, loaded how far ahead."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 2

    def of(self, queries: int, keys: int) -> "Tiles":
        """These for lengths that may be shorter; products need 16 of each."""
        cut = lambda most, length: min(most, max(16, pl.next_power_of_2(length)))
        return Tiles(cut(self.queries, queries), cut(self.keys, keys), self.warps, self.stages)


@dataclass(frozen=True)
class Problem:
    """All that is known of a call while it is traced."""

    rows: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head: int
    value: int
    mask: Mask
    scale: float
    cap: float | None
    interpret: bool

    @property
    def group(self) -> int:
        """The query heads of one key/value head."""
        return self.heads // self.kv_heads


class Arrays(NamedTuple):
    """What a kernel reads (or blocks of it); None for what there is not."""

    visits: Any  # [R, tiles, 4]
    q: Any
    k: Any
    v: Any
    positions: Any = None  # of [B, T] and [B, S]
    segments: Any = None
    bias: Any = None
    slopes: Any = None
    dout: Any = None
    lse: Any = None  # [B, N, T]
    delta: Any = None  # [B, N, T]
    sinks: Any = None


class Given(NamedTuple):
    """What attention depends on without a gradient."""

    places: Places
    slopes: Any


def gather(found: Any, q: Any, k: Any, v: Any, bias: Any, given: Given, *more: Any) -> Arrays:
    """The arrays of a kernel, from those of a call."""
    positions, segments = (
        None if pair is None else tuple(x.astype(jnp.int32)[:, None] for x in pair)
        for pair in given.places
    )
    rest = bias, given.slopes, *more
    return Arrays(jnp.asarray(found), q, k, v, positions, segments, *rest)


def wide(size: int) -> int:
    """The size of a head in a kernel."""
    return max(16, pl.next_power_of_2(size))


def visits(problem: Problem, size: Tiles, places: Places, by_keys: bool = False) -> Any:
    """[R, tiles, 4]: where tiles of the other side begin to be seen, are all seen, are not, end.

    Between the second and the third no mask is needed. What is known while tracing is a constant.
    """
    some, every = _seen(problem, size, places)
    if by_keys:
        some, every = some.swapaxes(1, 2), every.swapaxes(1, 2)
    xp = np if isinstance(some, np.ndarray) else jnp
    n, at = some.shape[-1], np.arange(some.shape[-1])
    first = some.argmax(-1)
    end = xp.where(some.any(-1), n - some[..., ::-1].argmax(-1), first)
    inner = xp.where(every.any(-1), every.argmax(-1), end)
    beyond = ~every & (at >= inner[..., None])
    outer = xp.minimum(xp.where(beyond.any(-1), beyond.argmax(-1), n), end)
    return xp.stack([first, inner, outer, end], -1).astype(np.int32)


def phases(found: Any) -> tuple[bool, bool, bool]:
    """Which of a loop's parts, masked, whole and masked again, there are for any tile."""
    if not isinstance(found, np.ndarray):
        return True, True, True
    steps = np.diff(found, axis=-1) > 0
    masked, whole, again = (bool(steps[..., part].any()) for part in range(3))
    return masked, whole, again


def _seen(problem: Problem, size: Tiles, places: Places) -> tuple[Any, Any]:
    """Whether any and whether every query of tile i sees the keys of tile j, [R, i, j]."""
    T, S = problem.queries, problem.keys
    static = np.arange(S - T, S)[None], np.arange(S)[None]
    low, high, least, most = _ranges(places.positions or static, size)
    some = problem.mask.some(low, high, least, most)
    every = problem.mask.every(low, high, least, most)
    if places.segments is not None:
        low, high, least, most = _ranges(places.segments, size)
        some &= (high >= least) & (low <= most)
        every &= (low == high) & (least == most) & (low == least)
    inside = (np.arange(1, every.shape[1] + 1) * size.queries <= T)[:, None]
    return some, every & inside & (np.arange(1, every.shape[2] + 1) * size.keys <= S)


def _ranges(pair: tuple[Any, Any], size: Tiles) -> tuple[Any, Any, Any, Any]:
    """The least and the greatest value of each tile of queries, and of keys."""

    def of(x: Any, step: int) -> tuple[Any, Any]:
        xp = np if isinstance(x, np.ndarray) else jnp
        more = up(x.shape[1], step) - x.shape[1]
        tiled = xp.pad(x, ((0, 0), (0, more)), mode="edge").reshape(x.shape[0], -1, step)
        return tiled.min(-1), tiled.max(-1)

    (low, high), (least, most) = of(pair[0], size.queries), of(pair[1], size.keys)
    zeros = (low * 0)[..., None] + (least * 0)[:, None]  # [R, i, j], for a mask updates in place
    return (
        zeros + low[..., None],
        zeros + high[..., None],
        zeros + least[:, None],
        zeros + most[:, None],
    )


def matrix(ref: Any, at: Any, start: Any, step: int, length: int, width: int) -> Any:
    """`step` rows from `start` of head `at` of a [length, heads, width] array, 0 beyond it."""
    where = ref.at[pl.ds(start, step), jnp.int32(at), :]
    keep = inside(start, step, length, ref.shape[-1], width)
    return plgpu.load(where) if keep is None else plgpu.load(where, mask=keep, other=0.0)


def write(ref: Any, start: Any, tile: Any, length: int, width: int) -> None:
    """Store a tile as rows from `start` of the only head of a [length, 1, width] array."""
    keep = inside(start, tile.shape[0], length, tile.shape[1], width)
    where = ref.at[pl.ds(start, tile.shape[0]), jnp.int32(0), :]
    tile = tile.astype(ref.dtype)
    plgpu.store(where, tile) if keep is None else plgpu.store(where, tile, mask=keep)


def note(ref: Any, start: Any, numbers: Any, length: int) -> None:
    """Store numbers from `start` of the only row of a [1, length] array."""
    step = numbers.shape[0]
    where = ref.at[jnp.int32(0), pl.ds(start, step)]
    if length % step == 0:
        plgpu.store(where, numbers)
    else:
        plgpu.store(where, numbers, mask=start + jnp.arange(step) < length)


def inside(start: Any, step: int, length: int, across: int, width: int) -> Any:
    """Where a tile of `step` rows and `across` columns is within an array; None if everywhere."""
    keep = None
    if length % step:
        keep = jnp.broadcast_to((start + jnp.arange(step) < length)[:, None], (step, across))
    if across != width:
        columns = jnp.broadcast_to((jnp.arange(across) < width)[None, :], (step, across))
        keep = columns if keep is None else keep & columns
    return keep


def vector(ref: Any, at: Any, start: Any, step: int, length: int) -> Any:
    """`step` numbers from `start` of row `at` of a [rows, length] array, 0 beyond it."""
    where = ref.at[jnp.int32(at), pl.ds(start, step)]
    if length % step == 0:
        return plgpu.load(where)
    zero = jnp.zeros((), ref.dtype)
    return plgpu.load(where, mask=start + jnp.arange(step) < length, other=zero)


def bias_of(p: Problem, size: Tiles, ref: Any, at: Any, start: Any, begin: Any) -> Any:
    """A tile of the bias for head `at`, [queries, keys]; None if there is none."""
    if ref is None:
        return None
    at = at if ref.shape[0] > 1 else 0
    where = ref.at[jnp.int32(at), pl.ds(start, size.queries), pl.ds(begin, size.keys)]
    queries = (start + jnp.arange(size.queries) < p.queries)[:, None]
    keep = queries & (begin + jnp.arange(size.keys) < p.keys)[None, :]
    return plgpu.load(where, mask=keep, other=jnp.zeros((), ref.dtype))


class Lift(NamedTuple):
    """How a tile of scores is laid: its queries and its keys along which axis."""

    queries: Callable[[Any], Any]
    keys: Callable[[Any], Any]


COLUMN, ROW = (lambda x: x[:, None]), (lambda x: x[None, :])
UPRIGHT, TURNED = Lift(COLUMN, ROW), Lift(ROW, COLUMN)


def places_of(
    problem: Problem, size: Tiles, arrays: Arrays, start: Any, begin: Any, lift: Lift
) -> Any:
    """The positions of the queries from `start` and of the keys from `begin`, laid out."""
    if arrays.positions is not None:
        queries = vector(arrays.positions[0], 0, start, size.queries, problem.queries)
        keys = vector(arrays.positions[1], 0, begin, size.keys, problem.keys)
    else:
        queries = start + (problem.keys - problem.queries) + jnp.arange(size.queries)
        keys = begin + jnp.arange(size.keys)
    return lift.queries(queries), lift.keys(keys)


def seen_of(
    problem: Problem, size: Tiles, arrays: Arrays, start: Any, begin: Any, lift: Lift
) -> Any:
    """Which keys from `begin` the queries from `start` may see; none beyond the last."""
    queries, keys = places_of(problem, size, arrays, start, begin, lift)
    seen = problem.mask.sees(queries, keys)
    if arrays.segments is not None:
        mine = vector(arrays.segments[0], 0, start, size.queries, problem.queries)
        theirs = vector(arrays.segments[1], 0, begin, size.keys, problem.keys)
        seen &= lift.queries(mine) == lift.keys(theirs)
    if problem.keys % size.keys:
        seen &= lift.keys(begin + jnp.arange(size.keys)) < problem.keys
    if problem.queries % size.queries:
        seen &= lift.queries(start + jnp.arange(size.queries)) < problem.queries
    return seen


def scores_of(
    problem: Problem, products: Any, bias: Any, slope: Any, places: Any
) -> tuple[Any, Any]:
    """Scores from q kᵀ, times log₂ e, and their slope in the capped ones (None is 1)."""
    slopes = None
    if problem.cap is None:
        found = products * (problem.scale * LOG2E)
    else:
        tanh = jnp.tanh(products * (problem.scale / problem.cap))
        found, slopes = tanh * (problem.cap * LOG2E), 1 - tanh * tanh
    if bias is not None:
        found += bias.astype(jnp.float32) * LOG2E
    if slope is not None:
        away = jnp.abs(places[0] - places[1]).astype(jnp.float32)
        found -= slope * LOG2E * away
    return found, slopes


def loop(
    found: tuple[bool, bool, bool], bounds: Any, visit: Callable[[bool, Any, Any], Any], carry: Any
) -> Any:
    """`visit(masked, j, carry)` over the tiles between four bounds, part after part."""
    for part, (there, masked) in enumerate(zip(found, (True, False, True), strict=True)):
        if there:
            step = partial(visit, masked)
            carry = lax.fori_loop(bounds[part], bounds[part + 1], step, carry)
    return carry


def bounds_of(arrays: Arrays, i: Any) -> list[Any]:
    """The four bounds of the tiles that tile i visits."""
    return [arrays.visits[i, at] for at in range(4)]


def specs(p: Problem, size: Tiles, arrays: Arrays, group: int) -> Arrays:
    """The blocks of program g of a row: whole arrays of `group` query heads and of their k and v.

    A block is an address only; the kernels load tiles of it.
    """
    T, S = up(p.queries, size.queries), up(p.keys, size.keys)

    def at(g: Any) -> tuple[Any, Any, Any]:
        row, head = split(g, p.heads // group)
        return row, head, lax.div(head * group, np.int32(p.group))

    zero = 0
    first = lambda array, row: row if array.shape[0] > 1 else zero
    mine = lambda width: pl.BlockSpec(
        (None, T, group, wide(width)), lambda i, g: (at(g)[0], zero, at(g)[1], zero)
    )
    theirs = lambda width: pl.BlockSpec(
        (None, S, 1, wide(width)), lambda i, g: (at(g)[0], zero, at(g)[2], zero)
    )
    number = pl.BlockSpec((None, group, T), lambda i, g: (at(g)[0], at(g)[1], zero))
    marks = (
        pl.BlockSpec((None, 1, T), lambda i, g: (at(g)[0], zero, zero)),
        pl.BlockSpec((None, 1, S), lambda i, g: (at(g)[0], zero, zero)),
    )
    bias, shared = arrays.bias, arrays.bias is not None and arrays.bias.shape[1] == 1
    found = Arrays(
        visits=pl.BlockSpec(
            (None, *arrays.visits.shape[1:]),
            lambda i, g: (first(arrays.visits, at(g)[0]), zero, zero),
        ),
        q=mine(p.head),
        k=theirs(p.head),
        v=theirs(p.value),
        positions=marks,
        segments=marks,
        bias=pl.BlockSpec(
            (None, 1 if shared else group, T, S),
            lambda i, g: (first(bias, at(g)[0]), zero if shared else at(g)[1], zero, zero),
        ),
        slopes=pl.BlockSpec((group,), lambda i, g: (at(g)[1],)),
        dout=mine(p.value),
        lse=number,
        delta=number,
        sinks=pl.BlockSpec((group,), lambda i, g: (at(g)[1],)),
    )
    return Arrays(*(None if x is None else spec for x, spec in zip(arrays, found, strict=True)))


def split(g: Any, heads: int) -> tuple[Any, Any]:
    """The row and the head of the g-th of all heads of all rows."""
    return lax.div(g, np.int32(heads)), lax.rem(g, np.int32(heads))
