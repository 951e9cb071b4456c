"""Grouped matmul as GPU kernels, lowered through Triton, with the taking of rows in the loads.

A program computes one tile of one group's results; a group's tiles begin at its first row, so that
no two groups share one. Programs that share a matrix's tiles, or a tile of rows, run side by side
and find them in the cache.
"""

# R rows given, M rows taken, D their size, F that of the result, E groups.

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from jscale.pallas_kernels import interpret
from jscale.pallas_kernels.block import product, up
from jscale.pallas_kernels.device import device
from jscale.pallas_kernels.gpu_blocks import both, ends, load, side_by_side, store
from jscale.pallas_kernels.grouped_matmul.rows import given_back
from jscale.pallas_kernels.grouped_matmul.tiles import TRITON, Extent, Programs, Warps
from jscale.pallas_kernels.grouped_matmul.visits import own, spans


class Rows(NamedTuple):
    """What kernels read: whole arrays, of which they load tiles."""

    known: Any  # Turns, or Spans
    index: Any  # [M], which row of x; None for the rows in order
    x: Any
    other: Any  # the matrices, or the other rows


def refuses(call: Any) -> str | None:
    """Why these kernels cannot compute a call: numbers that Triton does not multiply; else None."""
    for dtype in (call.dtype, call.weights):
        if dtype not in ("bfloat16", "float16", "float32"):
            return f"computes bfloat16, float16 and float32 only, not {dtype}"
    return None


def kernel(
    x: Float[Array, "R D"],
    w: Float[Array, "E D F"],
    sizes: Int[Array, " E"],
    rows: Int[Array, " M"] | None = None,
    size: Programs | None = None,
) -> Float[Array, "M F"]:
    """As `reference`, by kernels for GPUs; sums in float32, products in x's dtype."""
    M, (E, D, F) = (x if rows is None else rows).shape[0], w.shape
    if 0 in (x.shape[0], M, E, D, F):
        return jnp.zeros((M, F), x.dtype)
    extent = Extent(M, D, F, E, str(x.dtype), str(w.dtype))
    rows = None if rows is None else rows.astype(jnp.int32)
    return _product(size or TRITON.of(device().kind, extent), x, w, sizes, rows)


def _multiplied(
    size: Warps, turned: bool, x: Array, w: Float[Array, "E D F"], sizes: Array, rows: Any
) -> Float[Array, "M _"]:
    """Rows [M, D] times the matrix of their group; turned, rows [M, F] times its transpose."""
    M, (_, D, F) = (x if rows is None else rows).shape[0], w.shape
    length, width = (F, D) if turned else (D, F)
    summed, across = (size.outer, size.inner) if turned else (size.inner, size.outer)
    known = own(sizes, M, size.rows)
    columns = -(-width // across)
    return pl.pallas_call(
        partial(_rows_kernel, size, turned, (length, width)),
        grid=(known.group.shape[0] * columns,),
        in_specs=[Rows(_whole(known), _whole(rows), _wide(x, summed), _matrix(size, w.shape))],
        out_specs=pl.BlockSpec((M, up(width, across)), lambda p: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((M, width), x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=size.warps, num_stages=size.stages),
        interpret=interpret.gpu(),
        name="grouped_matmul_backward" if turned else "grouped_matmul_forward",
    )(Rows(known, rows, x, w))


def _whole(x: Any) -> Any:
    block = lambda a: pl.BlockSpec(a.shape, lambda p: (0,) * a.ndim)
    return jax.tree.map(block, x)


def _wide(x: Array, step: int) -> Any:
    """All of an array, whose columns are read in tiles: an address, nothing is fetched."""
    return pl.BlockSpec((x.shape[0], up(x.shape[1], step)), lambda p: (0, 0))


def _matrix(size: Warps, shape: tuple[int, ...]) -> Any:
    """All of the matrices, likewise."""
    E, D, F = shape
    return pl.BlockSpec((E, up(D, size.inner), up(F, size.outer)), lambda p: (0, 0, 0))


def _rows_kernel(size: Warps, turned: bool, shape: tuple[int, int], read: Rows, out: Any) -> None:
    length, width = shape
    summed, across = (size.outer, size.inner) if turned else (size.inner, size.outer)
    columns, E = -(-width // across), read.other.shape[0]
    turn, column = side_by_side(pl.program_id(0), read.known.group.shape[0], columns)
    group, low, high = (ref[turn] for ref in read.known)
    begin = column * across
    rows_of = _rows(read, low, high, size.rows)

    def add(k: Any, sums: Any) -> Any:
        at = k * summed
        rows = rows_of(at, summed, length)
        cut = ends(at, summed, length), ends(begin, across, width)
        if turned:
            part = read.other.at[group, pl.ds(begin, across), pl.ds(at, summed)]
            return sums + product(rows, load(part, cut[::-1]).astype(rows.dtype), (1, 1))
        part = read.other.at[group, pl.ds(at, summed), pl.ds(begin, across)]
        return sums + product(rows, load(part, cut).astype(rows.dtype), (1, 0))

    none = jnp.zeros((size.rows, across), jnp.float32)
    written = out.at[pl.ds(low, size.rows), pl.ds(begin, across)]
    keep = both(low + jnp.arange(size.rows) < high, ends(begin, across, width), none.shape)

    @pl.when(group < E)
    def _() -> None:
        sums = lax.fori_loop(0, -(-length // summed), add, none)
        plgpu.store(written, sums.astype(out.dtype), mask=keep)

    @pl.when((group == E) & (high > low))
    def _() -> None:
        plgpu.store(written, none.astype(out.dtype), mask=keep)


def _rows(read: Rows, low: Any, high: Any, t: int) -> Callable[[Any, int, int], Any]:
    """Loads `step` columns from a place, of rows of x in the places from `low`, 0 from `high` on.

    Rows that are taken by index have to be told one by one, and so have their columns; an index
    out of range gives 0.
    """
    mine = low + jnp.arange(t) < high
    if read.index is None:
        return lambda at, step, length: load(
            read.x.at[pl.ds(low, t), pl.ds(at, step)], (mine, ends(at, step, length))
        )
    given = plgpu.load(read.index.at[pl.ds(low, t)], mask=mine, other=-1)
    there = (given >= 0) & (given < read.x.shape[0])
    source = jnp.where(there, given, 0)[:, None]

    def gather(at: Any, step: int, length: int) -> Any:
        columns = (at + jnp.arange(step))[None, :]
        each = (jnp.broadcast_to(x, (t, step)) for x in (source, columns))
        return load(read.x.at[tuple(each)], (there, ends(at, step, length)))

    return gather


def _matrices(
    size: Warps, x: Array, by: Float[Array, "M F"], w: Array, sizes: Array, rows: Any
) -> Float[Array, "E D F"]:
    """Each group's rows of one times those of the other, in w's dtype; without rows, zeros."""
    (M, F), (E, D, _) = by.shape, w.shape
    known = spans(sizes, M)
    tiles = -(-D // size.inner), -(-F // size.outer)
    read = Rows(known, rows, x, by)
    return pl.pallas_call(
        partial(_matrices_kernel, size, (D, F)),
        grid=(E * tiles[0] * tiles[1],),
        in_specs=[Rows(_whole(known), _whole(rows), _wide(x, size.inner), _wide(by, size.outer))],
        out_specs=pl.BlockSpec(
            (E, tiles[0] * size.inner, tiles[1] * size.outer), lambda p: (0,) * 3
        ),
        out_shape=jax.ShapeDtypeStruct(w.shape, w.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=size.warps, num_stages=size.stages),
        interpret=interpret.gpu(),
        name="grouped_matmul_matrices",
    )(read)


def _matrices_kernel(size: Warps, shape: tuple[int, int], read: Rows, out: Any) -> None:
    (D, F), (t, d, f) = shape, size[:3]
    tiles = -(-D // d), -(-F // f)
    p = pl.program_id(0)
    each = np.int32(tiles[0] * tiles[1])
    group, rest = lax.div(p, each), lax.rem(p, each)
    across, down = side_by_side(rest, tiles[1], tiles[0])
    i, j = down * d, across * f
    low, high = read.known.start[group], read.known.end[group]

    def add(k: Any, sums: Any) -> Any:
        first = low + k * t
        mine = first + jnp.arange(t) < high
        other = load(read.other.at[pl.ds(first, t), pl.ds(j, f)], (mine, ends(j, f, F)))
        return sums + product(_rows(read, first, high, t)(i, d, D), other, (0, 0))

    steps = lax.div(high - low + t - 1, np.int32(t))
    sums = lax.fori_loop(0, steps, add, jnp.zeros((d, f), jnp.float32)).astype(out.dtype)
    where = out.at[group, pl.ds(i, d), pl.ds(j, f)]
    keep = both(ends(i, d, D), ends(j, f, F), (d, f))
    store(where, sums, keep)


def _primal(size: Programs, x: Array, w: Array, sizes: Array, rows: Array | None) -> Array:
    return _multiplied(size.forward, False, x, w, sizes, rows)


def _forward(
    size: Programs, x: Array, w: Array, sizes: Array, rows: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    return _primal(size, x, w, sizes, rows), (x, w, sizes, rows)


def _backward(
    size: Programs, saved: tuple[Any, ...], by: Float[Array, "M F"]
) -> tuple[Array, Array, None, None]:
    x, w, sizes, rows = saved
    dx = _multiplied(size.backward, True, by, w, sizes, None)
    dw = _matrices(size.matrices, x, by, w, sizes, rows)
    return given_back(x, rows, dx), dw, None, None


_product = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_product.defvjp(_forward, _backward)
